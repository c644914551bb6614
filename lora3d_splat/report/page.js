"use strict";
// Wipe between a photograph and its rendering, and choose which rendering.
for (const wipe of document.querySelectorAll(".wipe")) {
  const place = () => wipe.style.setProperty("--at", wipe.querySelector("input").value + "%");
  wipe.querySelector("input").addEventListener("input", place);
  place();
}
for (const choice of document.querySelectorAll(".renders input")) {
  choice.addEventListener("change", () => {
    choice.closest(".scored").querySelector(".wipe").dataset.shown = choice.value;
  });
}
