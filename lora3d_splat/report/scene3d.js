"use strict";
// Points and cameras on a plain 2D canvas: turned by dragging, no library, no WebGL. Data: packed_scene() of scene3d.py.
(() => {
  const data = JSON.parse(document.getElementById("scene-data").textContent);
  const canvas = document.getElementById("scene"), pen = canvas.getContext("2d");
  const control = (name) => document.getElementById("scene-" + name);
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const passes = data.passes.map((p) => ({
    ...p, places: new Int16Array(bytes(p.places).buffer), rgb: bytes(p.rgb),
    confidence: bytes(p.confidence), calibrated: bytes(p.calibrated), residual: bytes(p.residual),
  }));
  const VIEWS = { above: [0, Math.PI / 2], side: [Math.PI / 2, 0], cameras: [0.0, 0.12] };
  const state = { yaw: 0.45, pitch: 0.45, zoom: 1, x: 0, y: 0, hover: null };
  const ramp = Array.from({ length: 256 }, (_, k) => {
    const at = (k / 255) * (data.palette.length - 1), i = Math.min(Math.floor(at), data.palette.length - 2);
    return data.palette[i].map((c, j) => Math.round(c + (at - i) * (data.palette[i + 1][j] - c)));
  });
  passes.forEach((p, k) => control("pass").add(new Option(p.name, k, false, k === passes.length - 1)));

  control("threshold").value = Math.round(100 * data.threshold);

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const size = () => [canvas.width, canvas.height];
  const unit = () => (Math.min(...size()) / 2.25) * state.zoom;

  function matrix() {
    const [cy, sy, cp, sp] = [Math.cos(state.yaw), Math.sin(state.yaw), Math.cos(state.pitch), Math.sin(state.pitch)];
    return [[cy, 0, -sy], [-sy * sp, cp, -cy * sp], [sy * cp, sp, cy * cp]];
  }
  function project(m, p) {
    const [w, h] = size(), s = unit();
    const dot = (r) => r[0] * p[0] + r[1] * p[1] + r[2] * p[2];
    return [w / 2 + state.x + s * dot(m[0]), h / 2 + state.y - s * dot(m[1]), dot(m[2])];
  }

  function drawPoints(p, m) {
    const [w, h] = size(), picture = pen.createImageData(w, h), out = picture.data, depth = new Float32Array(w * h);
    depth.fill(-1e9);
    const mode = control("colour").value, s = unit() * 4 / data.range, grain = Math.max(1, Math.round(w / 420 * Math.sqrt(state.zoom)));
    const least = (control("threshold").value / 100) * 255;
    let kept = 0;
    for (let i = 0; i < p.count; i++) {
      if (p.calibrated[i] < least) continue;
      kept++;
      const x = p.places[3 * i], y = p.places[3 * i + 1], z = p.places[3 * i + 2];
      const u = Math.round(w / 2 + state.x + s * (m[0][0] * x + m[0][1] * y + m[0][2] * z));
      const v = Math.round(h / 2 + state.y - s * (m[1][0] * x + m[1][1] * y + m[1][2] * z));
      const d = m[2][0] * x + m[2][1] * y + m[2][2] * z;
      const c = mode === "rgb" ? p.rgb.subarray(3 * i, 3 * i + 3) : ramp[p[mode][i]];
      for (let b = v; b < v + grain; b++) for (let a = u; a < u + grain; a++) {
        if (a < 0 || b < 0 || a >= w || b >= h) continue;
        const k = b * w + a;
        if (d <= depth[k]) continue;
        depth[k] = d;
        out[4 * k] = c[0]; out[4 * k + 1] = c[1]; out[4 * k + 2] = c[2]; out[4 * k + 3] = 255;
      }
    }
    pen.putImageData(picture, 0, 0);
    control("count").textContent = `${kept.toLocaleString("en")} of ${p.count.toLocaleString("en")} points shown`;
  }

  function drawCameras(list, m, style, dash) {
    pen.strokeStyle = style;
    pen.lineWidth = Math.max(1, canvas.width / 700);
    pen.setLineDash(dash);
    for (const camera of list) {
      const [o, a, b, c, d] = camera.corners.map((p) => project(m, p));
      pen.beginPath();
      for (const [f, g] of [[o, a], [o, b], [o, c], [o, d], [a, b], [b, c], [c, d], [d, a]]) {
        pen.moveTo(f[0], f[1]); pen.lineTo(g[0], g[1]);
      }
      pen.stroke();
    }
    pen.setLineDash([]);
  }

  function drawName(camera, m) {
    const [x, y] = project(m, camera.corners[0]), scale = canvas.width / canvas.clientWidth;
    pen.font = `${13 * scale}px system-ui, sans-serif`;
    const wide = pen.measureText(camera.file).width + 12 * scale, left = Math.min(x + 8 * scale, canvas.width - wide);
    pen.fillStyle = colour("--ink");
    pen.fillRect(left, y - 26 * scale, wide, 20 * scale);
    pen.fillStyle = colour("--paper");
    pen.fillText(camera.file, left + 6 * scale, y - 12 * scale);
  }

  let waiting = false;
  function draw() {
    waiting = false;
    if (!canvas.width || !canvas.height) return; // not laid out yet: fit() will draw
    const p = passes[control("pass").value], m = matrix();
    drawPoints(p, m);
    if (control("cameras").checked) {
      if (passes.length > 1 && p !== passes[0]) drawCameras(passes[0].cameras, m, colour("--soft"), [4, 4]);
      drawCameras(p.cameras, m, colour("--accent"), []);
      if (state.hover) drawName(state.hover, m);
    }
    control("least").textContent = (control("threshold").value / 100 * data.high.calibrated).toFixed(2);
    control("scale").hidden = control("colour").value === "rgb";
    control("low").textContent = "0";
    const mode = control("colour").value;
    control("high").textContent = mode === "residual"
      ? `${(100 * data.high.residual).toPrecision(2)} % of the depth or more` : `${(data.high[mode] || 0).toPrecision(2)} or more`;
  }
  function redraw() {
    if (!waiting) { waiting = true; requestAnimationFrame(draw); }
  }
  function fit() {
    const scale = Math.min(window.devicePixelRatio || 1, 2);
    canvas.width = Math.round(canvas.clientWidth * scale);
    canvas.height = Math.round(canvas.clientHeight * scale);
    redraw();
  }
  function at(event) {
    const box = canvas.getBoundingClientRect(), scale = canvas.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  }

  let drag = null;
  canvas.addEventListener("pointerdown", (e) => { drag = [...at(e), e.shiftKey || e.button === 2]; canvas.setPointerCapture(e.pointerId); });
  canvas.addEventListener("pointerup", () => { drag = null; });
  canvas.addEventListener("pointercancel", () => { drag = null; });
  canvas.addEventListener("contextmenu", (e) => e.preventDefault());
  canvas.addEventListener("pointermove", (e) => {
    const [x, y] = at(e);
    if (drag) {
      const [dx, dy] = [x - drag[0], y - drag[1]];
      if (drag[2]) { state.x += dx; state.y += dy; }
      else { state.yaw -= dx / unit(); state.pitch = Math.max(-1.57, Math.min(1.57, state.pitch + dy / unit())); }
      drag[0] = x; drag[1] = y;
    }
    const m = matrix(), near = 16 * canvas.width / canvas.clientWidth;
    const found = passes[control("pass").value].cameras
      .map((c) => { const q = project(m, c.corners[0]); return [Math.hypot(q[0] - x, q[1] - y), c]; })
      .sort((a, b) => a[0] - b[0])[0];
    state.hover = found && found[0] < near ? found[1] : null;
    redraw();
  });
  canvas.addEventListener("pointerleave", () => { state.hover = null; redraw(); });
  canvas.addEventListener("wheel", (e) => {
    if (!e.ctrlKey && !canvas.matches(":focus")) return; // the page scrolls until the picture was clicked
    e.preventDefault();
    state.zoom = Math.max(0.2, Math.min(20, state.zoom * Math.exp(-e.deltaY / 500)));
    redraw();
  }, { passive: false });
  for (const name of ["pass", "colour", "cameras", "threshold"]) control(name).addEventListener("input", redraw);
  for (const button of document.querySelectorAll("[data-look]")) {
    button.addEventListener("click", () => {
      [state.yaw, state.pitch] = VIEWS[button.dataset.look];
      Object.assign(state, { zoom: 1, x: 0, y: 0 });
      redraw();
    });
  }
  for (const [name, factor] of [["in", 1.3], ["out", 1 / 1.3]]) {
    control(name).addEventListener("click", () => { state.zoom = Math.max(0.2, Math.min(20, state.zoom * factor)); redraw(); });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  new ResizeObserver(fit).observe(canvas);
})();
