"use strict";

// Pictures are sent one in a request, a few at a time: the server classifies together what comes together, and each
// picture has its own answer or its own error. Names of files and classes are only ever set as text.

const AT_ONCE = 4;
const TRIES = 6;

const by = (id) => document.getElementById(id);
const drop = by("drop");
const cards = by("cards");
const queue = [];
let running = 0;
let maxMegabytes = Infinity;

function percent(probability) {
  if (probability > 0 && probability < 0.001) return "< 0.1 %";
  return `${(100 * probability).toFixed(1)} %`;
}

async function tellAbout() {
  try {
    const about = await (await fetch("health")).json();
    maxMegabytes = about.max_mb;
    by("limits").prepend(`Up to ${maxMegabytes} MB each. `);
    const name = document.createElement("bdi");
    name.textContent = about.model;
    const number = about.classes.toLocaleString("en");
    const caution = about.calibrated ? "" : " · probabilities are uncalibrated";
    by("about").replaceChildren(name, ` · ${number} ${about.classes === 1 ? "class" : "classes"}${caution}`);
  } catch {
    by("about").textContent = "The server cannot be reached.";
  }
}

function take(files) {
  const added = Array.from(files, newCard);
  if (!added.length) return;
  cards.prepend(...added.map(({ card }) => card));
  by("answers").hidden = false;
  drop.classList.add("used");
  queue.push(...added);
  work();
}

function newCard(file) {
  const card = by("card").content.firstElementChild.cloneNode(true);
  card.querySelector("bdi").textContent = file.name || "pasted picture";
  const image = card.querySelector("img");
  const address = URL.createObjectURL(file);
  image.addEventListener("load", () => URL.revokeObjectURL(address));
  image.addEventListener("error", () => {
    URL.revokeObjectURL(address);
    image.remove(); // of a format that this browser does not show
  });
  image.src = address;
  return { file, card };
}

function work() {
  while (running < AT_ONCE && queue.length) {
    const { file, card } = queue.shift();
    running += 1;
    card.setAttribute("aria-busy", "true");
    answer(file, card)
      .then((prediction) => card.isConnected && showPrediction(card, prediction)) // not once it has been cleared
      .catch((error) => card.isConnected && showError(card, error.message))
      .finally(() => {
        card.removeAttribute("aria-busy");
        running -= 1;
        work();
      });
  }
}

async function answer(file, card) {
  const megabytes = file.size / 1e6;
  if (megabytes > maxMegabytes) {
    throw new Error(`${megabytes.toFixed(1)} MB is more than the ${maxMegabytes} MB that the server takes`);
  }
  for (let attempt = 1; ; attempt += 1) {
    const form = new FormData();
    form.append("file", file, file.name || "picture");
    let response;
    try {
      response = await fetch("predict", { method: "POST", body: form });
    } catch {
      throw new Error("the server cannot be reached");
    }
    if (response.status === 503 && attempt < TRIES && card.isConnected) {
      const seconds = Number(response.headers.get("retry-after")) || 1;
      await new Promise((resume) => setTimeout(resume, 1000 * seconds * attempt));
      continue;
    }
    const content = await response.json().catch(() => ({ error: `the server answers ${response.status}` }));
    if (response.ok) return content.predictions[0];
    throw new Error(content.errors?.[0]?.error ?? content.error);
  }
}

function showPrediction(card, prediction) {
  const rows = document.createElement("ol");
  rows.className = "classes";
  rows.setAttribute("role", "list"); // which some browsers drop with the numbers
  rows.append(...prediction.top.map(newRow));
  card.querySelector(".state").replaceWith(rows);
  tell(`${card.querySelector(".file").textContent}: ${prediction.class}, ${percent(prediction.probability)}`);
}

function newRow({ class: name, probability }) {
  const row = by("row").content.firstElementChild.cloneNode(true);
  row.querySelector(".name").textContent = name;
  row.querySelector(".percent").textContent = percent(probability);
  row.querySelector(".fill").style.setProperty("--share", probability);
  return row;
}

function showError(card, words) {
  const state = card.querySelector(".state");
  card.classList.add("failed");
  state.className = "fault";
  state.textContent = `Not classified: ${words}.`;
  tell(`${card.querySelector(".file").textContent} is not classified: ${words}`);
}

function tell(words) {
  by("status").textContent = words;
}

function chooseBy(input) {
  input.addEventListener("change", () => {
    take(input.files);
    input.value = ""; // so that the same file can be chosen again
  });
}

function holdsFiles(event) {
  return event.dataTransfer?.types.includes("Files") ?? false;
}

let depth = 0; // of the elements that a drag has entered, one in another

function setOver(change) {
  depth = change === 0 ? 0 : Math.max(0, depth + change);
  drop.classList.toggle("over", depth > 0);
}

chooseBy(by("choose"));
chooseBy(by("photograph"));
drop.addEventListener("click", (event) => {
  if (!event.target.closest(".way")) by("choose").click();
});
// The whole window takes what is dropped: a picture beside the frame would replace the page.
window.addEventListener("dragenter", (event) => holdsFiles(event) && setOver(1));
window.addEventListener("dragleave", (event) => holdsFiles(event) && setOver(-1));
window.addEventListener("dragover", (event) => holdsFiles(event) && event.preventDefault());
window.addEventListener("drop", (event) => {
  if (!holdsFiles(event)) return;
  event.preventDefault();
  setOver(0);
  take(event.dataTransfer.files);
});
window.addEventListener("paste", (event) => take(event.clipboardData?.files ?? []));
by("clear").addEventListener("click", () => {
  queue.length = 0;
  cards.replaceChildren();
  by("answers").hidden = true;
  drop.classList.remove("used");
  tell("Cleared");
  by("choose").focus();
});
tellAbout();
