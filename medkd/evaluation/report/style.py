"""The look of a report: one style sheet and a few lines of script for the slices; nothing from the network."""

STYLE = """
:root { color-scheme:light dark; --ink:#1c2733; --muted:#5d6c7b; --line:#dfe5ea; --ground:#eef2f5; --box:#fff;
  --good:#0a7d6b; --bad:#b0304a; --open:#8a5a00; --shadow:0 8px 24px rgba(20,39,63,.08); }
* { box-sizing:border-box; }
body { margin:0; background:var(--ground); color:var(--ink);
  font:15px/1.55 -apple-system,BlinkMacSystemFont,"Segoe UI",Roboto,"Helvetica Neue",Arial,"Liberation Sans",
  "DejaVu Sans",sans-serif; }
main, header div { max-width:1340px; margin:0 auto; padding:0 24px; }
main { padding-bottom:64px; }
header { background:linear-gradient(120deg,#14273f 0%,#22406b 55%,#0b7a6b 130%); color:#fff; padding:40px 0 84px; }
header small { letter-spacing:.14em; text-transform:uppercase; font-size:11.5px; opacity:.75; }
h1 { font-size:24px; line-height:1.2; margin:4px 0 14px; font-weight:640; overflow-wrap:anywhere; }
header p { margin:0 0 6px; max-width:900px; opacity:.92; overflow-wrap:anywhere; }
header p.answer { font-size:19px; line-height:1.4; opacity:1; }
header p.answer small { display:block; letter-spacing:0; text-transform:none; font-size:15px; }
header p.answer strong { font-size:26px; }
h2 { font-size:19px; margin:0 0 4px; letter-spacing:-.01em; }
section { background:var(--box); border:1px solid var(--line); border-radius:14px; padding:24px 26px; margin-top:20px; }
section > p.lead { margin:0 0 16px; color:var(--muted); max-width:780px; }
.cards { display:grid; grid-template-columns:repeat(auto-fit,minmax(190px,1fr)); gap:14px; margin-top:-52px; }
.card { background:var(--box); border:1px solid var(--line); border-radius:14px; padding:18px 20px 16px;
  box-shadow:var(--shadow); }
.card b { display:block; font-size:29px; line-height:1.15; letter-spacing:-.02em; font-weight:680; }
.card b, table { font-variant-numeric:tabular-nums; }
.card span { color:var(--muted); font-size:13px; display:block; overflow-wrap:anywhere; }
.card em { font-style:normal; font-size:11.5px; letter-spacing:.08em; text-transform:uppercase; color:var(--muted);
  display:block; margin-bottom:6px; }
.scroll { overflow-x:auto; margin:0 -26px; padding:0 26px; }
table { border-collapse:collapse; width:100%; font-size:14px; }
th { font-weight:600; color:var(--muted); font-size:12px; text-align:right; padding:6px 8px;
  border-bottom:1px solid var(--line); vertical-align:bottom; }
td { padding:9px 8px; text-align:right; border-bottom:1px solid var(--line); white-space:nowrap; vertical-align:top; }
th:first-child, td:first-child { text-align:left; padding-left:0; white-space:normal; overflow-wrap:anywhere; }
th:last-child, td:last-child { padding-right:0; }
tbody tr:last-child td { border-bottom:0; }
td small { display:block; color:var(--muted); font-size:11.5px; line-height:1.35; }
td b { font-weight:640; }
table.wide td { white-space:normal; }
table.wide td:first-child { min-width:170px; }
code { font-size:12px; overflow-wrap:anywhere; }
.dot { display:inline-block; width:10px; height:10px; border-radius:50%; margin-right:8px; flex:none; }
.role { color:var(--muted); font-size:11.5px; display:block; margin-left:18px; line-height:1.35; }
td .good, .good { color:var(--good); } td .bad, .bad { color:var(--bad); } .muted { color:var(--muted); }
.badge { display:inline-block; font-size:11.5px; line-height:1.3; padding:2px 8px; border-radius:9px; margin-top:3px;
  border:1px solid currentColor; color:var(--muted); white-space:normal; }
.badge.yes { color:var(--good); } .badge.no { color:var(--bad); } .badge.open { color:var(--open); }
figure { margin:0; } figure img { display:block; width:100%; height:auto; }
figcaption { font-size:13px; color:var(--muted); margin-top:8px; overflow-wrap:anywhere; }
.two { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(400px,100%),1fr)); gap:22px 30px;
  align-items:start; }
.chart img { max-width:500px; } .chart.wide img { max-width:640px; }
.legend > span { display:inline-flex; align-items:center; margin:0 16px 4px 0; font-size:13px; color:var(--muted); }
.legend.runs { margin-bottom:12px; }
.legend i { width:18px; height:0; border-top:3px solid; margin-right:7px; border-radius:2px; }
.legend i.ref { border-color:#fff; box-shadow:0 0 0 1px #667585; }
.viewer { margin-top:18px; background:#10161c; border-radius:10px; padding:12px; }
.viewer figcaption, .viewer strong { color:#cfd8df; }
.panels { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(230px,100%),1fr)); gap:10px;
  align-items:end; }
.panel em { display:block; font-style:normal; font-size:12px; color:#e8eef3; text-align:center; padding-bottom:4px;
  overflow-wrap:anywhere; }
.panel img { width:auto; max-width:100%; max-height:560px; margin:0 auto; border-radius:6px; }
.panel figcaption { text-align:center; font-size:12px; margin-top:4px; }
.pane { position:relative; width:100%; max-width:420px; margin:0 auto; }
.pane div { position:absolute; inset:0; background-repeat:no-repeat; background-size:100% calc(100% * var(--n));
  background-position:0 calc(100% * var(--i) / max(var(--n) - 1, 1)); -webkit-print-color-adjust:exact;
  print-color-adjust:exact; }
.viewer .grey { background-image:var(--grey); } .viewer .ref { background-image:var(--ref); }
.viewer.noref .ref, .viewer.nopred .pred { display:none; }
.controls { display:flex; flex-wrap:wrap; gap:6px 18px; align-items:center; margin-top:10px; font-size:13px;
  color:#cfd8df; }
.controls input[type=range] { flex:1 1 180px; }
dl { display:grid; grid-template-columns:150px 1fr; gap:6px 18px; margin:0; font-size:14px; }
dt { color:var(--muted); } dd { margin:0; overflow-wrap:anywhere; }
details { margin-top:18px; } summary { cursor:pointer; font-weight:600; color:var(--muted); font-size:13.5px; }
li { overflow-wrap:anywhere; }
footer { color:var(--muted); font-size:12.5px; margin-top:22px; text-align:center; }
@media screen and (max-width:760px) {
  main, header div { padding-left:12px; padding-right:12px; }
  section { padding:18px 14px; } .scroll { margin:0 -14px; padding:0 14px; }
  h1 { font-size:19px; } header p.answer { font-size:16px; } header p.answer strong { font-size:21px; }
  dl { grid-template-columns:1fr; gap:0; } dd { margin-bottom:8px; }
  table, tbody, tr, td { display:block; width:100%; } thead { display:none; }
  tr { border-bottom:1px solid var(--line); padding:8px 0; } tbody tr:last-child { border-bottom:0; }
  td, td:first-child, td:last-child { border:0; padding:3px 0; white-space:normal; min-width:0; }
  td:not(:first-child) { display:grid; grid-template-columns:minmax(110px,42%) 1fr; gap:0 10px; text-align:left; }
  td:not(:first-child) > * { grid-column:2; justify-self:start; }
  td:not(:first-child)::before { content:attr(data-label); grid-column:1; grid-row:1 / span 9; color:var(--muted);
    font-size:12.5px; overflow-wrap:anywhere; }
  table.wide td:first-child { font-weight:600; }
}
@media screen and (prefers-color-scheme:dark) {
  :root { --ink:#e4eaef; --muted:#9aa9b6; --line:#2c3843; --ground:#0f151b; --box:#18212a; --good:#3ecbb0;
    --bad:#ff7f96; --open:#f0b64d; --shadow:none; }
  .chart img, .dot { filter:invert(1) hue-rotate(180deg) brightness(1.15); }
}
@page { size:A4 landscape; margin:11mm; }
@media print {
  :root { color-scheme:light; }
  body { background:#fff; font-size:12px; } main, header div { max-width:none; padding:0 8px; }
  header { padding:18px 0 22px; -webkit-print-color-adjust:exact; print-color-adjust:exact; }
  .cards { margin-top:12px; } .card { padding:10px 12px; box-shadow:none; } .card b { font-size:20px; }
  section { padding:14px 12px; margin-top:12px; } .scroll { overflow:visible; margin:0; padding:0; }
  table { font-size:9.5px; } th, td small, .badge, .role { font-size:8px; } th, td { padding:4px; }
  td { white-space:normal; overflow-wrap:anywhere; } h2, .lead, .legend { break-after:avoid; }
  tr, figure, .card, .viewer { break-inside:avoid; } .dot, .badge { print-color-adjust:exact; }
  .two { grid-template-columns:1fr 1fr; } .controls, details:not([open]) { display:none; }
  .pane { max-width:150px; } .panels { grid-template-columns:repeat(auto-fit,minmax(150px,1fr)); }
  .viewer { print-color-adjust:exact; }
}
""".strip()

SCRIPT = """
for (const viewer of document.querySelectorAll(".viewer")) {
  const slider = viewer.querySelector("input[type=range]"), shown = viewer.querySelector("output");
  if (slider) slider.addEventListener("input", () => {
    viewer.style.setProperty("--i", slider.value);
    if (shown) shown.textContent = slider.dataset.names.split(" ")[slider.value];
  });
  for (const box of viewer.querySelectorAll("input[type=checkbox]"))
    box.addEventListener("change", () => viewer.classList.toggle("no" + box.dataset.layer, !box.checked));
}
""".strip()
