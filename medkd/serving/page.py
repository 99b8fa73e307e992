"""The upload page with its viewer of slices: one file, nothing from elsewhere."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>medkd</title>
<style>
:root { color-scheme: light dark; --line: #8886; --soft: #8881; --accent: #1a6fb5; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --accent: #7cbcf5; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 64rem; }
h1 { font-size: 1.3rem; margin: 0; }
p { margin: .4rem 0; }
small, .note { color: GrayText; overflow-wrap: anywhere; }
#drop { border: 2px dashed var(--line); border-radius: .6rem; padding: 1.2rem; margin: 1rem 0; text-align: center; }
#drop.over { border-color: var(--accent); background: var(--soft); }
input[type=file], select, button { font: inherit; max-width: 100%; }
button { padding: .4rem 1rem; }
#state { min-height: 1.5rem; overflow-wrap: anywhere; }
#state.bad { color: var(--bad); }
#viewer { display: none; gap: 1rem; flex-wrap: wrap; }
#viewer.on { display: flex; }
#pane { flex: 1 1 20rem; min-width: 0; }
canvas { display: block; width: 100%; max-height: 75vh; object-fit: contain; background: #000; image-rendering: auto; }
#side { flex: 0 1 16rem; min-width: 0; }
#slice { width: 100%; }
.row { display: flex; gap: .6rem; align-items: center; flex-wrap: wrap; margin: .3rem 0; }
table { border-collapse: collapse; width: 100%; }
td, th { padding: .15rem .3rem; border-bottom: 1px solid var(--line); text-align: left; overflow-wrap: anywhere; }
td:last-child, th:last-child { text-align: right; font-variant-numeric: tabular-nums; }
i { display: inline-block; width: .8em; height: .8em; border-radius: .2em; margin-right: .4em; }
a.button { color: var(--accent); }
</style>
</head>
<body>
<main>
<h1>medkd</h1>
<p class="note" id="model">Research software, not a medical device; not for diagnosis.</p>
<div id="drop">
<p><label for="file">NIfTI, or a zip of one DICOM series<span id="many"></span>:</label></p>
<p><input type="file" id="file"></p>
<p class="row" style="justify-content:center"><label for="format">Label map as</label> <select id="format"></select>
<button id="send" disabled>Segment</button></p>
</div>
<p id="state" role="status" aria-live="polite"></p>
<div id="viewer">
<div id="pane">
<canvas id="canvas" width="1" height="1" role="img" aria-label="slice of the scan with its structures"></canvas>
<p class="row"><input type="range" id="slice" min="0" max="0" aria-label="slice">
<output id="number" for="slice"></output></p>
</div>
<div id="side">
<p class="row"><label for="axis">Plane</label> <select id="axis"><option value="0">axial</option>
<option value="1">coronal</option><option value="2">sagittal</option></select></p>
<p class="row"><label><input type="checkbox" id="overlay" checked> structures</label></p>
<table><thead><tr><th>structure</th><th>ml</th></tr></thead><tbody id="structures"></tbody></table>
<p><a class="button" id="save">Save the label map</a></p>
<p class="note" id="times"></p>
<div id="remarks"></div>
</div>
</div>
</main>
<script>
"use strict";
const $ = id => document.getElementById(id);
const COLOURS = [[230, 75, 53], [77, 187, 213], [0, 160, 135], [243, 155, 127], [145, 209, 194], [132, 145, 180],
  [240, 228, 66], [204, 121, 167], [126, 97, 72], [86, 180, 233]];
const colour = place => COLOURS[(place - 1) % COLOURS.length];
let scan = null, channels = 1, address = null;

function say(text, bad) { $("state").textContent = text; $("state").className = bad ? "bad" : ""; }
function bytes(text) { return Uint8Array.from(atob(text), letter => letter.charCodeAt(0)); }

fetch("health").then(answer => answer.json()).then(health => {
  channels = health.channels;
  $("model").textContent = `${health.model}: ${health.labels.join(", ")}. ` + $("model").textContent;
  if (channels > 1) {
    $("file").multiple = true;
    $("many").textContent = `, ${channels} files, a channel each, in the order of their names`;
  }
  for (const format of health.formats) $("format").add(new Option(format, format));
}).catch(() => say("The server does not answer.", true));

$("file").addEventListener("change", () => { $("send").disabled = !$("file").files.length; });
for (const kind of ["dragover", "dragleave", "drop"])
  $("drop").addEventListener(kind, event => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") { $("file").files = event.dataTransfer.files; $("file").dispatchEvent(new Event("change")); }
  });

$("send").addEventListener("click", async () => {
  const form = new FormData();
  const files = [...$("file").files].sort((one, other) => one.name < other.name ? -1 : 1);
  for (const file of files) form.append("scan", file, "scan");
  $("send").disabled = true;
  const start = performance.now();
  const clock = setInterval(() => say(`Working, ${Math.round((performance.now() - start) / 1000)} s \\u2026`), 250);
  try {
    const answer = await fetch("view?format=" + encodeURIComponent($("format").value), { method: "POST", body: form });
    const found = await answer.json();
    clearInterval(clock);
    if (!answer.ok) { say(found.error || `The server answered ${answer.status}.`, true); return; }
    show(found);
  } catch (error) {
    say("The server did not answer; is it still running, and is the file not too large?", true);
  } finally {
    clearInterval(clock);
    $("send").disabled = !$("file").files.length;
  }
});

function show(found) {
  scan = { shape: found.shape, spacing: found.spacing, image: bytes(found.image), labels: bytes(found.labels) };
  const rows = $("structures");
  rows.replaceChildren();
  found.structures.forEach((structure, index) => {
    const row = rows.insertRow(), name = row.insertCell(), swatch = document.createElement("i");
    swatch.style.background = `rgb(${colour(index + 1)})`;
    name.append(swatch, structure.name);
    row.insertCell().textContent = structure.millilitres.toFixed(2);
  });
  if (address) URL.revokeObjectURL(address);
  address = URL.createObjectURL(new Blob([bytes(found.content)]));
  $("save").href = address;
  $("save").download = found.name;
  const times = Object.entries(found.seconds).map(([stage, took]) => `${stage} ${took.toFixed(2)} s`);
  $("times").textContent = times.join(", ");
  $("remarks").replaceChildren(...found.remarks.map(text => Object.assign(document.createElement("p"),
    { className: "note", textContent: text })));
  $("viewer").classList.add("on");
  say("Done.");
  plane();
}

function plane() {
  const size = scan.shape[$("axis").value];
  $("slice").max = size - 1;
  $("slice").value = size >> 1;
  draw();
}

function draw() {
  if (!scan) return;
  const axis = +$("axis").value, index = +$("slice").value, [depth, height, width] = scan.shape;
  const strides = [height * width, width, 1], others = [0, 1, 2].filter(other => other !== axis);
  const [down, along] = others, rows = scan.shape[down], columns = scan.shape[along];
  const flip = axis !== 0;  // the head is above
  const picture = new ImageData(columns, rows), pixels = picture.data, overlay = $("overlay").checked;
  for (let row = 0, at = 0; row < rows; row++) {
    const line = index * strides[axis] + (flip ? rows - 1 - row : row) * strides[down];
    for (let column = 0; column < columns; column++, at += 4) {
      const voxel = line + column * strides[along], grey = scan.image[voxel], label = scan.labels[voxel];
      const shade = overlay && label ? colour(label) : null;
      for (let part = 0; part < 3; part++) pixels[at + part] = shade ? (grey + shade[part]) / 2 : grey;
      pixels[at + 3] = 255;
    }
  }
  const small = new OffscreenCanvas(columns, rows);
  small.getContext("2d").putImageData(picture, 0, 0);
  const wide = columns * scan.spacing[along], high = rows * scan.spacing[down], scale = 512 / Math.max(wide, high);
  const canvas = $("canvas");
  canvas.width = Math.max(1, Math.round(wide * scale));
  canvas.height = Math.max(1, Math.round(high * scale));
  canvas.getContext("2d").drawImage(small, 0, 0, canvas.width, canvas.height);
  $("number").textContent = `${index + 1} / ${scan.shape[axis]}`;
}

$("axis").addEventListener("change", plane);
$("slice").addEventListener("input", draw);
$("overlay").addEventListener("change", draw);
$("canvas").addEventListener("wheel", event => {
  event.preventDefault();
  $("slice").value = +$("slice").value + Math.sign(event.deltaY);
  draw();
}, { passive: false });
</script>
</body>
</html>
"""
