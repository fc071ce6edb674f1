// Draws recorded episodes: before adaptation above, after adaptation below, on one clock. No library, no network.
"use strict";
(() => {
  const root = document.getElementById("player");
  const data = JSON.parse(document.getElementById("player-data").textContent);
  const [tabs, stage, play, scrub, speed, clock] =
    ["tabs", "stage", "play", "scrub", "speed", "clock"].map((name) => root.querySelector(`[data-part=${name}]`));
  const canvases = data.kinds.map((kind) => {
    const figure = document.createElement("figure");
    const canvas = figure.appendChild(document.createElement("canvas"));
    const caption = figure.appendChild(document.createElement("figcaption"));
    canvas.setAttribute("role", "img");
    stage.append(figure);
    return { kind, canvas, caption };
  });
  let task = null, seconds = 0, playing = !matchMedia("(prefers-reduced-motion: reduce)").matches, last = null;

  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const fixed = (value, digits) => value.toFixed(digits).replace(/^-(0\.0+)$/, "$1");
  const longest = () => Math.max(...task.clips.map((clip) => clip.frames.length - 1));
  const highest = () => Math.max(...task.clips.flatMap((clip) => clip.frames.map((frame) => frame[1] / 1000)));
  const duration = () => longest() * data.bodies[task.body].dt;

  // The pose of one link between two frames; an angle goes the short way round.
  function pose(clip, link, at) {
    const low = Math.min(Math.floor(at), clip.frames.length - 1), high = Math.min(low + 1, clip.frames.length - 1);
    const part = at - low, a = clip.frames[low].slice(3 * link, 3 * link + 3), b = clip.frames[high].slice(3 * link, 3 * link + 3);
    const turn = Math.atan2(Math.sin((b[2] - a[2]) / 1000), Math.cos((b[2] - a[2]) / 1000));
    const mix = (i) => (a[i] + part * (b[i] - a[i])) / 1000;
    return [mix(0), mix(1), a[2] / 1000 + part * turn];
  }

  function draw({ kind, canvas, caption }, clip) {
    const body = data.bodies[task.body], at = Math.min(seconds / body.dt, clip.frames.length - 1);
    const ratio = devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
    if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
    if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
    const pen = canvas.getContext("2d"), scale = height / (0.9 + highest()), torso = pose(clip, 0, at);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    const X = (x) => width / 2 + (x - torso[0]) * scale, Z = (z) => height - 0.35 * scale - z * scale;
    ground(pen, X, Z, torso[0], width, height, scale);
    pen.lineCap = "round";
    body.link.forEach((link, i) => {
      const [x, z, angle] = pose(clip, link, at), c = Math.cos(angle), s = Math.sin(angle);
      const [x1, z1, x2, z2, radius] = body.shape[i];
      pen.strokeStyle = colour(link === 0 ? "--ink" : link < 4 ? "--c0" : "--c1");
      pen.lineWidth = 2 * radius * scale;
      pen.beginPath();
      pen.moveTo(X(x + x1 * c - z1 * s), Z(z + x1 * s + z1 * c));
      pen.lineTo(X(x + x2 * c - z2 * s), Z(z + x2 * s + z2 * c));
      pen.stroke();
    });
    const step = Math.min(Math.floor(at), clip.rewards.length);
    const reward = clip.rewards.slice(0, step).reduce((sum, value) => sum + value, 0);
    const moved = torso[0] - clip.frames[0][0] / 1000, over = at >= clip.frames.length - 1;
    const end = over && clip.fell ? ` · fell after ${clip.rewards.length} steps` : "";
    caption.textContent = `${kind}: return ${fixed(reward, 1)} of ${fixed(clip.return, 1)} · ${fixed(moved, 2)} m${end}`;
    canvas.setAttribute("aria-label", `${task.name}, ${kind}: return ${clip.return}`);
  }

  function ground(pen, X, Z, centre, width, height, scale) {
    pen.strokeStyle = pen.fillStyle = colour("--muted");
    pen.lineWidth = 1;
    pen.font = "11px system-ui, sans-serif";
    pen.textAlign = "center";
    pen.beginPath();
    pen.moveTo(0, Z(0));
    pen.lineTo(width, Z(0));
    const half = width / 2 / scale;
    for (let metre = Math.ceil(centre - half); metre <= centre + half; metre += 1) {
      pen.moveTo(X(metre), Z(0));
      pen.lineTo(X(metre), Z(0) + 5);
      pen.fillText(`${metre} m`, X(metre), Math.min(Z(0) + 18, height - 2));
    }
    pen.stroke();
  }

  function show() {
    canvases.forEach((view, i) => draw(view, task.clips[i]));
    scrub.value = Math.round((1000 * seconds) / duration());
    clock.textContent = `${seconds.toFixed(2)} s`;
    play.textContent = playing ? "Pause" : "Play";
  }

  function tick(now) {
    if (playing && last !== null) {
      seconds += ((now - last) / 1000) * Number(speed.value);
      if (seconds > duration() + 0.8 * Number(speed.value)) seconds = 0;
      show();
    }
    last = now;
    requestAnimationFrame(tick);
  }

  function choose(index) {
    task = data.tasks[index];
    seconds = 0;
    // A cheetah's episode lasts 5 s, a walker's 0.8 s: the walker is shown slowed down.
    speed.value = duration() > 2 ? "1" : "0.25";
    [...tabs.children].forEach((tab, i) => tab.setAttribute("aria-pressed", i === index));
    show();
  }

  data.tasks.forEach(({ name }, index) => {
    const tab = document.createElement("button");
    tab.type = "button";
    tab.textContent = name;
    tab.addEventListener("click", () => choose(index));
    tabs.append(tab);
  });
  play.addEventListener("click", () => { playing = !playing; show(); });
  scrub.addEventListener("input", () => { playing = false; seconds = (scrub.value / 1000) * duration(); show(); });
  addEventListener("resize", show);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  choose(0);
  requestAnimationFrame(tick);
})();
