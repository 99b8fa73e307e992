"""The look of a report: one style sheet, no script, nothing from the network."""

STYLE = """
:root { --ink:#1c2733; --muted:#667585; --line:#dfe5ea; --soft:#f4f7f9; --teacher:#22406b; --alone:#8b98a5; --good:#0b8f7a;
  --bad:#b8344f; }
* { box-sizing:border-box; }
body { margin:0; background:#eef2f5; color:var(--ink);
  font:15px/1.55 -apple-system,BlinkMacSystemFont,"Segoe UI",Roboto,"Helvetica Neue",Arial,"Liberation Sans","DejaVu Sans",sans-serif; }
main { max-width:1080px; margin:0 auto; padding:0 24px 64px; }
header { background:linear-gradient(120deg,#14273f 0%,#22406b 55%,#0b7a6b 130%); color:#fff; padding:44px 0 84px; }
header div { max-width:1080px; margin:0 auto; padding:0 24px; }
header small { letter-spacing:.14em; text-transform:uppercase; font-size:11.5px; opacity:.75; }
h1 { font-size:32px; line-height:1.15; margin:6px 0 10px; font-weight:680; letter-spacing:-.015em; }
header p { margin:0; max-width:760px; opacity:.9; }
h2 { font-size:19px; margin:0 0 4px; letter-spacing:-.01em; }
section { background:#fff; border:1px solid var(--line); border-radius:14px; padding:24px 26px; margin-top:20px; }
section > p.lead { margin:0 0 16px; color:var(--muted); max-width:780px; }
.cards { display:grid; grid-template-columns:repeat(auto-fit,minmax(190px,1fr)); gap:14px; margin-top:-52px; }
.card { background:#fff; border:1px solid var(--line); border-radius:14px; padding:18px 20px 16px;
  box-shadow:0 8px 24px rgba(20,39,63,.08); }
.card b { display:block; font-size:29px; line-height:1.15; letter-spacing:-.02em; font-weight:680; font-variant-numeric:tabular-nums; }
.card span { color:var(--muted); font-size:13px; display:block; }
.card em { font-style:normal; font-size:11.5px; letter-spacing:.08em; text-transform:uppercase; color:var(--muted); display:block;
  margin-bottom:6px; }
.scroll { overflow-x:auto; margin:0 -26px; padding:0 26px; }
table { border-collapse:collapse; width:100%; font-variant-numeric:tabular-nums; font-size:14px; }
th { font-weight:600; color:var(--muted); font-size:12px; text-align:right; padding:6px 10px; border-bottom:1px solid var(--line);
  vertical-align:bottom; }
td { padding:9px 10px; text-align:right; border-bottom:1px solid var(--line); white-space:nowrap; vertical-align:top; }
th:first-child, td:first-child { text-align:left; padding-left:0; white-space:normal; }
th:last-child, td:last-child { padding-right:0; }
tbody tr:last-child td { border-bottom:0; }
td small { display:block; color:var(--muted); font-size:11.5px; line-height:1.35; }
td b { font-weight:640; }
.name { white-space:nowrap; }
.dot { display:inline-block; width:10px; height:10px; border-radius:50%; margin-right:8px; }
.role { color:var(--muted); font-size:11.5px; display:block; margin-left:18px; line-height:1.35; }
.good { color:var(--good); } .bad { color:var(--bad); } .muted { color:var(--muted); }
figure { margin:0; } figure img { display:block; width:100%; height:auto; }
figcaption { font-size:13px; color:var(--muted); margin-top:8px; }
.two { display:grid; grid-template-columns:repeat(auto-fit,minmax(400px,1fr)); gap:22px 30px; align-items:start; }
.wide img { max-width:820px; margin:0 auto; }
.picture { margin-top:16px; } .picture img { border-radius:10px; background:#10161c; }
.picture strong { color:var(--ink); }
.legend span { display:inline-flex; align-items:center; margin:0 16px 4px 0; font-size:13px; color:var(--muted); }
section > .legend.runs { margin-bottom:12px; }
.legend i { width:18px; height:0; border-top:3px solid; margin-right:7px; border-radius:2px; }
.legend i.ref { border-color:#fff; box-shadow:0 0 0 1px #667585; }
dl { display:grid; grid-template-columns:150px 1fr; gap:6px 18px; margin:0; font-size:14px; }
dt { color:var(--muted); } dd { margin:0; }
details { margin-top:18px; } summary { cursor:pointer; font-weight:600; color:var(--muted); font-size:13.5px; }
footer { color:var(--muted); font-size:12.5px; margin-top:22px; text-align:center; }
@media (max-width:560px) { .two { grid-template-columns:1fr; } dl { grid-template-columns:1fr; gap:0; } dd { margin-bottom:8px; } h1 {
  font-size:25px; } }
@media print { body { background:#fff; } section,.card { break-inside:avoid; box-shadow:none; } header {
  -webkit-print-color-adjust:exact; print-color-adjust:exact; } }
""".strip()
