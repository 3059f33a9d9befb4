"""The page at `/`: the model, its contract, its robots, and a form to try a picture and an instruction.

One document without anything from elsewhere. It asks /describe, /robots and /act, as any client does; what they answer
is only ever set as text.
"""

from __future__ import annotations

import base64
import hashlib

_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #8884 }
td.number { text-align: right; font-variant-numeric: tabular-nums }
.absent { opacity: .55 } .error { color: #c33 } code { font-size: .95em }
form { display: flex; flex-wrap: wrap; gap: .6rem; align-items: center }
input[type=text], input[type=password] { flex: 1 1 18rem; padding: .35rem } button { padding: .4rem 1rem }
[hidden] { display: none !important }
img { max-height: 12rem; margin: .6rem 0 }
"""

_SCRIPT = """
const byId = (id) => document.getElementById(id);
const cell = (row, text, kind) => { const td = row.insertCell(); td.textContent = text; td.className = kind || ""; };
const headers = () => byId("token").value ? {Authorization: "Bearer " + byId("token").value} : {};
async function ask(path, options) {
  const settings = options || {};
  const answer = await fetch(path, {...settings, headers: {...headers(), ...(settings.headers || {})}});
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error);
  return content;
}
function complain(error) { byId("error").textContent = error.message; }
let policy = null;
async function describe() {
  try { policy = await ask("/describe"); } catch (error) {
    byId("login").hidden = false; complain(error); return;
  }
  byId("error").textContent = "";
  byId("model").textContent = policy.model;
  document.title = policy.model;
  const about = {
    "contract": policy.contract, "control rate": policy.control_hz === null ? "by data set" : policy.control_hz + " Hz",
    "action space": policy.convention.action_space, "gripper": policy.convention.gripper,
    "camera": policy.images.map((i) => i.camera + ", " + i.height + "x" + i.width + " pixels").join("; "),
    "frames looked at": policy.frames, "instruction encoder": policy.encoder,
    "data sets": Object.keys(policy.datasets).join(", "), "adapter": policy.adapter,
  };
  byId("about").replaceChildren();
  for (const [name, value] of Object.entries(about)) {
    const row = byId("about").insertRow(); cell(row, name); cell(row, String(value));
  }
  byId("known").replaceChildren(...policy.instructions.map((text) => new Option(text, text)));
  if (!byId("instruction").value && policy.instructions.length) byId("instruction").value = policy.instructions[0];
  const names = Object.keys(policy.datasets);
  byId("dataset").replaceChildren(...names.map((name) => new Option(name, name)));
  byId("dataset").hidden = names.length < 2;
  inputs();
  robots();
}
const chosen = () => policy.datasets[byId("dataset").value];
const cameras = () => chosen().cameras || policy.images.map((image) => image.camera);
function inputs() {
  const [first, ...others] = cameras(), state = chosen().state || [];
  byId("picture").title = "camera " + first;
  byId("further").replaceChildren(...others.map((role) => {
    const label = document.createElement("label"), input = byId("picture").cloneNode();
    input.id = "picture_" + role; input.title = "camera " + role; input.value = "";
    label.textContent = role + " "; label.append(input);
    return label;
  }));
  byId("state").hidden = !state.length;
  byId("state").required = state.length > 0;
  byId("state").placeholder = state.map((value) => value.name + " [" + value.unit + "]").join(", ");
}
async function robots() {
  try {
    const here = (await ask("/robots")).robots;
    byId("robots").replaceChildren();
    for (const robot of here) {
      const row = byId("robots").insertRow();
      cell(row, robot.name); cell(row, robot.idle_s.toFixed(1) + " s ago", "number");
    }
    byId("none").hidden = here.length > 0;
  } catch (error) { complain(error); }
}
function encoded(file) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result.split(",")[1]);
    reader.onerror = () => failed(new Error("the file cannot be read"));
    reader.readAsDataURL(file);
  });
}
let mark = null;  // of a policy that reads object masks: the pixel that was clicked
byId("shown").addEventListener("click", (event) => {
  const shown = byId("shown"), scale = shown.naturalWidth / shown.clientWidth;
  mark = [Math.floor(event.offsetX * scale), Math.floor(event.offsetY * scale)];
  byId("mark").textContent = "object at pixel " + mark.join(", ");
});
byId("picture").addEventListener("change", () => {
  mark = null;
  byId("mark").textContent = policy && policy.objects.length ? "click on the object meant" : "";
  const file = byId("picture").files[0];
  byId("shown").src = file ? URL.createObjectURL(file) : "";
  byId("shown").hidden = !file;
});
byId("dataset").addEventListener("change", inputs);
byId("try").addEventListener("submit", async (event) => {
  event.preventDefault();
  byId("error").textContent = "";
  byId("answered").hidden = true;  // an earlier answer is not this one's
  try {
    const body = {instruction: byId("instruction").value, stateless: true, dataset: byId("dataset").value};
    for (const [place, role] of cameras().entries()) {
      const input = byId(place ? "picture_" + role : "picture");
      body[role === "image" ? "image" : "image_" + role] = await encoded(input.files[0]);
    }
    if (!byId("state").hidden) body.state = byId("state").value.split(",").map(Number);
    if (mark && policy.objects.length) body.object_box = mark;
    const answer = await ask("/act", {method: "POST", headers: {"Content-Type": "application/json"},
                                      body: JSON.stringify(body)});
    byId("answer").replaceChildren();
    answer.action_names.forEach((name, place) => {
      const row = byId("answer").insertRow(), absent = answer.absent.includes(name);
      row.className = absent ? "absent" : "";
      const value = answer.actions[0][place];
      cell(row, name); cell(row, value === null ? "none" : value.toPrecision(4), "number");
      cell(row, answer.classes[name] || answer.units[name]);
      cell(row, absent ? "absent: commands nothing" : answer.clipped.includes(name) ? "clipped" : "");
    });
    byId("answered").hidden = false;
  } catch (error) { complain(error); }
});
byId("login").addEventListener("submit", (event) => {
  event.preventDefault(); byId("login").hidden = true; describe();
});
describe();
setInterval(() => { if (policy) robots(); }, 2000);
"""

_BODY = """
<h1>rt-pipelines serves <code id="model"></code></h1>
<p id="error" class="error" role="alert"></p>
<form id="login" hidden><label>token <input type="password" id="token" autocomplete="off"></label><button>enter</button>
</form>
<h2>Try it</h2>
<form id="try">
<input type="file" id="picture" accept="image/png,image/jpeg" required aria-label="picture">
<span id="further"></span>
<input type="text" id="state" hidden aria-label="state">
<input type="text" id="instruction" list="known" required aria-label="instruction" placeholder="instruction">
<datalist id="known"></datalist>
<select id="dataset" hidden aria-label="data set"></select>
<button>ask</button>
</form>
<img id="shown" alt="the picture to be sent" hidden>
<p id="mark"></p>
<div id="answered" hidden><table><thead><tr><th>dimension</th><th>value</th><th>unit or class</th><th></th></tr></thead>
<tbody id="answer"></tbody></table></div>
<h2>Policy</h2>
<table><tbody id="about"></tbody></table>
<h2>Robots</h2>
<p id="none">none has asked yet</p>
<table><tbody id="robots"></tbody></table>
"""

PAGE = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width"><title>rt-pipelines</title>'
    f"<style>{_STYLE}</style></head><body>{_BODY}<script>{_SCRIPT}</script></body></html>"
)


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


PAGE_POLICY = (
    f"default-src 'none'; script-src {_hash(_SCRIPT)}; style-src {_hash(_STYLE)}; connect-src 'self'; "
    f"img-src blob: data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
