// The page of `vton demo`. It talks to nobody but the server that it came from.
"use strict";

const $ = (selector, root = document) => root.querySelector(selector);
const NAMES = { upper_body: "a top", lower_body: "trousers or a skirt", dresses: "a dress" };
const LOOK_EVERY = 150; // ms between two looks at a running job
const MASK_COLOUR = [214, 30, 110];
const MASK_ALPHA = 128; // of painted pixels; half of it decides at the rim of a stroke

const state = { person: null, garment: null, category: "upper_body", job: null, ready: false, most: Infinity };

// ---- talking to the server ----

class Refusal extends Error {
  constructor(message, picture) { super(message); this.picture = picture; }
}

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Refusal("The server does not answer, or it closed the upload. Is it still running?", "");
  }
  let content = null;
  try { content = await answer.json(); } catch { /* an answer without content */ }
  if (!answer.ok) {
    const error = content?.error ?? { message: `The server answered ${answer.status}.`, picture: "" };
    throw new Refusal(error.message, error.picture);
  }
  return content;
}

function post(path, content) {
  return ask(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(content),
  });
}

// ---- messages, beside the picture that they concern ----

function card(picture) {
  return $({ person: "#person", mask: "#person", garment: "#garment" }[picture] ?? "#result");
}

function showError(error, fallback = "") {
  const line = $(".error", card(error.picture || fallback));
  line.textContent = sentence(error.message);
  line.hidden = false;
}

function clearErrors(...pictures) {
  for (const picture of pictures) $(".error", card(picture)).hidden = true;
}

function showNotes(picture, notes) {
  const list = $(".notes", card(picture));
  list.replaceChildren(...notes.map((note) => {
    const item = document.createElement("li");
    item.textContent = `${sentence(note)}.`;
    return item;
  }));
}

function sentence(text) { return text.charAt(0).toUpperCase() + text.slice(1); }

// ---- pictures: chosen, dropped, pasted, photographed, or the example ----

const chosen = {}; // the blob of each card that was chosen last: answers about others come too late

async function take(kind, blob) {
  clearErrors(kind, "");
  showNotes(kind, []);
  const own = card(kind);
  const drop = $(".drop", own);
  const late = () => chosen[kind] !== blob;
  chosen[kind] = blob;
  state[kind] = null;
  stopCamera(own);
  if (kind === "person") forgetMask();
  if (blob.size > state.most) {
    drop.classList.remove("busy");
    refresh();
    showError(new Refusal(`The picture has ${Math.round(blob.size / 2 ** 20)} MB; at most ${Math.round(state.most / 2 ** 20)} MB are allowed.`, kind));
    return;
  }
  drop.classList.add("busy");
  refresh();
  try {
    const type = blob.type.startsWith("image/") ? blob.type : "application/octet-stream";
    const uploaded = await ask(`/pictures/${kind}`, {
      method: "POST", headers: { "Content-Type": type }, body: blob,
    });
    if (late()) return;
    const image = $("img", own);
    if (image.src) URL.revokeObjectURL(image.src);
    image.src = URL.createObjectURL(blob);
    await image.decode();
    if (late()) return;
    state[kind] = uploaded;
    showStage(own);
    if (state.ready) await look[kind](); // else `begin` does
  } catch (error) {
    if (late()) return;
    showError(error, kind);
    showStage(own);
  } finally {
    if (!late()) drop.classList.remove("busy");
    refresh();
  }
}

// The picture, or the invitation to bring one.
function showStage(own) {
  const has = Boolean(state[own.id]);
  $(".stage", own).hidden = !has;
  $(".empty", own).hidden = has;
  $(".drop", own).classList.toggle("full", has);
  $(".drop", own).classList.toggle("waits", !has);
}

async function lookAtGarment() {
  clearErrors("garment");
  const own = state.garment;
  const seen = await post("/garment", { picture: own.picture });
  if (own !== state.garment) return; // another picture was chosen meanwhile
  showNotes("garment", seen.warnings);
  own.good = true;
}

async function detect() {
  clearErrors("person");
  state.person.good = false;
  const own = state.person;
  const seen = await post("/person", {
    picture: own.picture, category: state.category, people: people(),
  });
  if (own !== state.person) return;
  showNotes("person", seen.warnings);
  showFrame(seen.frame);
  own.good = true;
  await useMask(seen.mask);
}

// What is drawn of the photo, in shares of its size; nothing to see where it is all of it.
function showFrame([left, top, width, height]) {
  const cut = left > 0.005 || top > 0.005 || left + width < 0.995 || top + height < 0.995;
  const sides = { left, top, width, height };
  for (const side in sides) $("#frame").style[side] = `${100 * sides[side]}%`;
  $("#frame").hidden = $("#inside").hidden = !cut;
}

const look = { person: detect, garment: lookAtGarment };

async function lookAgain(kind) {
  const own = state[kind];
  if (!own || !state.ready) return;
  const drop = $(".drop", card(kind));
  drop.classList.add("busy");
  try {
    await look[kind]();
  } catch (error) {
    if (own === state[kind]) showError(error, kind);
  }
  if (own === state[kind]) drop.classList.remove("busy");
  refresh();
}

function people() { return $("#largest").checked ? "largest" : "only"; }

for (const kind of ["person", "garment"]) {
  const own = card(kind);
  const drop = $(".drop", own);
  drop.classList.add("waits");
  drop.addEventListener("click", () => { if (drop.matches(".waits")) $(".file", own).click(); });
  $(".file", own).addEventListener("change", (event) => {
    const [file] = event.target.files;
    if (file) take(kind, file);
    event.target.value = ""; // the same file again is a change too
  });
  drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    const [file] = event.dataTransfer.files;
    if (file) take(kind, file);
  });
  $(".example", own).addEventListener("click", async () => {
    try {
      const answer = await fetch(`/example/${kind}.jpg`);
      await take(kind, await answer.blob());
    } catch (error) { showError(error, kind); }
  });
  $(".camera", own).addEventListener("click", () => photograph(kind));
}

// A drop beside the cards must not replace the page by the picture.
for (const name of ["dragover", "drop"]) window.addEventListener(name, (event) => event.preventDefault());
window.addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) take(state.person ? "garment" : "person", file);
});

async function photograph(kind) {
  const own = card(kind);
  const video = $("video", own);
  const button = $(".camera", own);
  if (video.srcObject) { // the second press takes the picture
    const canvas = document.createElement("canvas");
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    canvas.getContext("2d").drawImage(video, 0, 0);
    stopCamera(own);
    canvas.toBlob((blob) => take(kind, blob), "image/jpeg", 0.95);
    return;
  }
  clearErrors(kind);
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({
      video: { width: { ideal: 1920 }, height: { ideal: 1920 } },
    });
    $(".stage", own).hidden = true;
    $(".empty", own).hidden = true;
    $(".drop", own).classList.add("full");
    $(".drop", own).classList.remove("waits");
    video.hidden = false;
    button.textContent = "Take picture";
    await video.play();
  } catch {
    stopCamera(own);
    showError(new Refusal("There is no camera here, or the browser may not use it.", kind));
  }
}

function stopCamera(own) {
  const video = $("video", own);
  for (const track of video.srcObject?.getTracks() ?? []) track.stop();
  video.srcObject = null;
  video.hidden = true;
  $(".camera", own).textContent = "Camera";
  showStage(own);
}

// ---- the mask: what is repainted, changed by brush and eraser ----

const canvas = $("#canvas");
const paint = canvas.getContext("2d", { willReadFrequently: true });
const mask = { painted: false, undo: [], cursor: null, stroke: null };

function forgetMask() {
  paint.clearRect(0, 0, canvas.width, canvas.height);
  mask.painted = false;
  mask.undo = [];
  $(".tools").hidden = true;
  $("#frame").hidden = true;
}

async function useMask(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  canvas.width = image.width;
  canvas.height = image.height;
  paint.clearRect(0, 0, canvas.width, canvas.height);
  paint.drawImage(image, 0, 0);
  const pixels = paint.getImageData(0, 0, canvas.width, canvas.height);
  for (let at = 0; at < pixels.data.length; at += 4) {
    const set = pixels.data[at] >= 128;
    pixels.data.set(set ? [...MASK_COLOUR, MASK_ALPHA] : [0, 0, 0, 0], at);
  }
  paint.putImageData(pixels, 0, 0);
  mask.painted = false;
  mask.undo = [];
  mask.cursor = null;
  $("#undo").disabled = true;
  $(".tools").hidden = false;
}

function remember() {
  mask.undo.push(paint.getImageData(0, 0, canvas.width, canvas.height));
  if (mask.undo.length > 12) mask.undo.shift();
  $("#undo").disabled = false;
  mask.painted = true;
}

function erasing() { return $("input[name=tool][value=eraser]").checked; }

function radius() {
  return Number($("#size").value) / 2 * canvas.width / Math.max(canvas.clientWidth, 1);
}

// Strokes set alpha, not colour over colour: twice over the same place is the same mask.
function dab(from, to) {
  const draw = (operation) => {
    paint.globalCompositeOperation = operation;
    paint.strokeStyle = paint.fillStyle = "#000";
    paint.lineWidth = 2 * radius();
    paint.lineCap = "round";
    paint.beginPath();
    paint.moveTo(from.x, from.y);
    paint.lineTo(to.x + 0.01, to.y);
    paint.stroke();
  };
  draw("destination-out");
  if (!erasing()) {
    paint.globalCompositeOperation = "source-over";
    paint.strokeStyle = `rgba(${MASK_COLOUR.join(",")},${MASK_ALPHA / 255})`;
    paint.lineWidth = 2 * radius();
    paint.lineCap = "round";
    paint.globalCompositeOperation = "destination-over";
    paint.beginPath();
    paint.moveTo(from.x, from.y);
    paint.lineTo(to.x + 0.01, to.y);
    paint.stroke();
  }
  paint.globalCompositeOperation = "source-over";
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  return {
    x: (event.clientX - box.left) / box.width * canvas.width,
    y: (event.clientY - box.top) / box.height * canvas.height,
  };
}

// A ring where the brush is, of its size.
function showBrush(at) {
  const brush = $("#brush");
  const scale = canvas.clientWidth / canvas.width;
  brush.style.width = brush.style.height = `${$("#size").value}px`;
  brush.style.left = `${at.x * scale}px`;
  brush.style.top = `${at.y * scale}px`;
  brush.hidden = false;
}

// Where the keys have moved it; at first the middle.
function cursor() {
  return mask.cursor ??= { x: canvas.width / 2, y: canvas.height / 2 };
}

canvas.addEventListener("focus", () => { if (canvas.matches(":focus-visible")) showBrush(cursor()); });
for (const name of ["blur", "pointerleave"]) {
  canvas.addEventListener(name, () => { $("#brush").hidden = true; });
}
canvas.addEventListener("pointerdown", (event) => {
  if (!state.person?.good || event.button > 0) return;
  canvas.setPointerCapture(event.pointerId);
  remember();
  mask.stroke = place(event);
  dab(mask.stroke, mask.stroke);
});
canvas.addEventListener("pointermove", (event) => {
  showBrush(place(event));
  if (!mask.stroke) return;
  for (const one of event.getCoalescedEvents?.() ?? [event]) {
    const to = place(one);
    dab(mask.stroke, to);
    mask.stroke = to;
  }
});
for (const name of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(name, () => { mask.stroke = null; });
}

canvas.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return; // the browser's own, such as its zoom
  const step = Math.max(2, radius() / 2);
  const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
  const from = cursor();
  if (event.key in moves) {
    const [dx, dy] = moves[event.key];
    const to = {
      x: Math.min(Math.max(from.x + dx, 0), canvas.width),
      y: Math.min(Math.max(from.y + dy, 0), canvas.height),
    };
    if (event.shiftKey) { remember(); dab(from, to); }
    mask.cursor = to;
  } else if (event.key === " ") {
    remember();
    dab(from, from);
  } else if (event.key === "e" || event.key === "E") {
    const other = erasing() ? "brush" : "eraser";
    $(`input[name=tool][value=${other}]`).checked = true;
  } else if (event.key === "+" || event.key === "-") {
    $("#size").value = Number($("#size").value) + (event.key === "+" ? 8 : -8);
  } else return;
  showBrush(cursor());
  event.preventDefault();
});

$("#undo").addEventListener("click", () => {
  const before = mask.undo.pop();
  if (before) paint.putImageData(before, 0, 0);
  $("#undo").disabled = !mask.undo.length;
});
$("#clear").addEventListener("click", () => {
  remember();
  paint.clearRect(0, 0, canvas.width, canvas.height);
});
$("#detect").addEventListener("click", () => lookAgain("person"));
$("#show").addEventListener("change", (event) => {
  canvas.style.opacity = event.target.checked ? 1 : 0;
});

// White where the mask is set, on black, as the server wants it.
function maskUrl() {
  const copy = document.createElement("canvas");
  copy.width = canvas.width;
  copy.height = canvas.height;
  const pixels = paint.getImageData(0, 0, canvas.width, canvas.height);
  for (let at = 0; at < pixels.data.length; at += 4) {
    const value = pixels.data[at + 3] >= MASK_ALPHA / 2 ? 255 : 0;
    pixels.data.set([value, value, value, 255], at);
  }
  copy.getContext("2d").putImageData(pixels, 0, 0);
  return copy.toDataURL("image/png");
}

// ---- settings ----

$("#dice").addEventListener("click", () => {
  $("#seed").value = Math.floor(Math.random() * 2147483643);
});
$("#largest").addEventListener("change", () => lookAgain("person"));

function settings() {
  const read = (id) => {
    const value = $(id).value.trim();
    return value === "" ? null : Number(value);
  };
  return {
    seed: read("#seed"), steps: read("#steps"), guidance: read("#guidance"),
    count: Number($("#count").value),
  };
}

function offer(categories) {
  const row = $("#categories");
  row.replaceChildren(...categories.map((category, index) => {
    const label = document.createElement("label");
    const text = document.createElement("span");
    text.textContent = NAMES[category];
    const input = document.createElement("input");
    input.type = "radio";
    input.name = "category";
    input.value = category;
    input.checked = index === 0;
    input.addEventListener("change", () => { state.category = category; lookAgain("person"); });
    label.append(input, text);
    return label;
  }));
  state.category = categories[0];
  $("#kinds").hidden = categories.length < 2;
  if (categories.length === 1) {
    $("#garment .hint").textContent = `${sentence(NAMES[categories[0]])} alone, on a plain ground.`;
  }
}

// ---- drawing ----

function refresh() {
  const both = state.person?.good && state.garment?.good;
  $("#go").disabled = !(state.ready && both) || state.job !== null;
  $("#cancel").disabled = state.job === null;
}

$("#form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if ($("#go").disabled) return;
  clearErrors("person", "garment", "");
  showPictures([]);
  const asked = {
    person: state.person.picture, garment: state.garment.picture, category: state.category,
    people: people(), mask: mask.painted ? maskUrl() : null, ...settings(),
  };
  try {
    state.job = (await post("/jobs", asked)).job;
    refresh();
    await follow(state.job, asked);
  } catch (error) {
    showError(error);
  }
  state.job = null;
  $("#progress").hidden = true;
  refresh();
});

$("#cancel").addEventListener("click", async () => {
  if (!state.job) return;
  $("#cancel").disabled = true;
  try { await ask(`/jobs/${state.job}`, { method: "DELETE" }); } catch (error) { showError(error); }
});

// Nobody would fetch what it draws, and others wait.
window.addEventListener("pagehide", () => {
  if (state.job) fetch(`/jobs/${state.job}`, { method: "DELETE", keepalive: true });
});

async function follow(job, asked) {
  const bar = $("progress");
  const text = $("#progress-text");
  $("#progress").hidden = false;
  bar.removeAttribute("value");
  for (;;) {
    const seen = await ask(`/jobs/${job}`);
    if (seen.state === "queued") {
      text.textContent = seen.before ? `Waiting: ${seen.before} before this one` : "Waiting";
    } else if (seen.state === "running") {
      if (seen.done) { bar.max = seen.total; bar.value = seen.done; }
      text.textContent = seen.done ? `Step ${seen.done} of ${seen.total}` : "Reading the pictures";
    } else if (seen.state === "done") {
      show(seen, asked);
      return;
    } else if (seen.state === "cancelled") {
      showError(new Refusal(`Cancelled after ${seen.done} of ${seen.total} steps.`, ""));
      return;
    } else {
      throw new Refusal(seen.error.message, seen.error.picture);
    }
    await new Promise((resolve) => { setTimeout(resolve, LOOK_EVERY); });
  }
}

function show(seen, asked) {
  showPictures(seen.pictures.map((url, index) => {
    const seed = (asked.seed ?? 0) + index;
    const figure = document.createElement("figure");
    const image = document.createElement("img");
    image.src = url;
    image.alt = `The person in the garment, seed ${seed}`;
    const caption = document.createElement("figcaption");
    const link = document.createElement("a");
    link.href = url;
    link.download = `tryon_seed${seed}.png`;
    link.textContent = "Download";
    const name = document.createElement("span");
    name.textContent = `Seed ${seed}`;
    caption.append(name, link);
    figure.append(image, caption);
    return figure;
  }));
  $("#drawing").textContent = `Drawn in ${seen.seconds.toFixed(1)} seconds.`;
}

function showPictures(figures) {
  $("#pictures").replaceChildren(...figures);
  $("#pictures").classList.toggle("several", figures.length > 1);
  $("#result .empty").hidden = figures.length > 0;
  $("#result .drop").classList.toggle("full", figures.length > 0);
}

// ---- the start: the page is here before the networks are ----

async function begin() {
  for (;;) {
    try {
      const about = await ask("/about");
      if (about.state === "ready") {
        $("#about").textContent = `${about.model}, ${about.size}, from ${about.run}`;
        $("#steps").placeholder = about.steps;
        $("#guidance").placeholder = about.guidance;
        $("#licences").textContent = about.licences.join("; ");
        state.most = about.most_bytes;
        offer(about.categories);
        state.ready = true;
        lookAgain("person");
        lookAgain("garment");
        break;
      }
      if (about.state === "failed") {
        $("#about").textContent = `The networks could not be loaded: ${about.message}`;
        $("#about").classList.add("failed");
        break;
      }
    } catch { /* the server is starting, or gone */ }
    await new Promise((resolve) => { setTimeout(resolve, 300); });
  }
  refresh();
}
begin();
