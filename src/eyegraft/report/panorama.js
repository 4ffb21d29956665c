// Turns a panorama where the reader asks for it. Browsers hold few WebGL contexts: those that leave the screen are given back.
(() => {
  "use strict";
  const MOST = 4;
  const live = [];

  const hasWebGL = (() => {
    try {
      const context = document.createElement("canvas").getContext("webgl");
      context?.getExtension("WEBGL_lose_context")?.loseContext();
      return Boolean(context);
    } catch {
      return false;
    }
  })();

  function stop(box) {
    const place = live.indexOf(box);
    if (place < 0) return;
    live.splice(place, 1);
    cancelAnimationFrame(box.frame);
    box.viewer.destroy();
    box.viewer = undefined;
    box.querySelector(".stage").remove();
    box.classList.remove("live");
  }

  // what the viewer shows: the picture, and on it the outlines that stand on the flat one
  function painted(box, picture) {
    const canvas = document.createElement("canvas");
    canvas.width = picture.naturalWidth;
    canvas.height = picture.naturalHeight;
    const pen = canvas.getContext("2d");
    pen.drawImage(picture, 0, 0);
    pen.scale(canvas.width / 360, canvas.height / 180);
    for (const drawn of box.querySelectorAll("svg path")) {
      const style = getComputedStyle(drawn), shape = new Path2D(drawn.getAttribute("d"));
      pen.fillStyle = style.fill;
      pen.globalAlpha = Number(style.fillOpacity) / 3; // it fills the screen there
      if (style.fill !== "none") pen.fill(shape);
      pen.strokeStyle = style.stroke;
      pen.lineWidth = 0.8;
      pen.globalAlpha = Number(style.strokeOpacity);
      pen.stroke(shape);
    }
    return canvas;
  }

  function say(box) {
    const degrees = (value) => `${value < -0.5 ? "−" : ""}${Math.abs(Math.round(value))}°`;
    const text = `yaw ${degrees(box.viewer.getYaw())}, pitch ${degrees(box.viewer.getPitch())}`;
    const where = box.querySelector(".where");
    if (where.textContent !== text) where.textContent = text;
    box.frame = requestAnimationFrame(() => say(box));
  }

  function begin(box, picture, yaw, pitch) {
    const stage = document.createElement("div");
    stage.className = "stage";
    stage.setAttribute("role", "application");
    stage.setAttribute("aria-label", "Panorama. Arrow keys turn it, plus and minus zoom, Escape closes it.");
    box.append(stage);
    box.classList.add("live");
    box.viewer = pannellum.viewer(stage, {
      type: "equirectangular", dynamic: true, dynamicUpdate: true, panorama: painted(box, picture), autoLoad: true,
      yaw, pitch, hfov: 95, minHfov: 30, mouseZoom: "fullscreenonly", showFullscreenCtrl: true,
    });
    live.push(box);
    box.viewer.on("error", () => refuse(box));
    box.viewer.on("load", () => box.viewer?.setUpdate(false));
    stage.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || document.fullscreenElement) return;
      stop(box);
      box.querySelector(".turn").focus();
    });
    const close = document.createElement("button");
    close.type = "button";
    close.className = "close";
    close.textContent = "×";
    close.setAttribute("aria-label", "Back to the flat picture");
    close.addEventListener("click", () => stop(box));
    const where = document.createElement("output");
    where.className = "where";
    stage.append(close, where);
    stage.focus({ preventScroll: true });
    say(box);
    while (live.length > MOST) stop(live[0]);
  }

  function refuse(box) {
    stop(box);
    box.querySelector(".turn").hidden = true;
  }

  function look(box, yaw, pitch) {
    if (box.viewer) {
      box.viewer.lookAt(pitch, yaw, undefined, 600);
      return;
    }
    if (box.waiting) return;
    box.waiting = true;
    const picture = new Image();
    picture.onload = () => {
      box.waiting = false;
      begin(box, picture, yaw, pitch);
    };
    picture.onerror = () => {
      box.waiting = false;
      refuse(box);
    };
    picture.src = document.getElementById(box.dataset.picture).getAttribute("href");
  }

  const gone = new IntersectionObserver((entries) => {
    for (const entry of entries) if (!entry.isIntersecting) stop(entry.target);
  });

  for (const box of hasWebGL ? document.querySelectorAll(".pano") : []) {
    const turn = box.querySelector(".turn");
    turn.hidden = false;
    turn.addEventListener("click", (event) => {
      if (!event.detail) return look(box, Number(box.dataset.yaw), Number(box.dataset.pitch)); // from the keyboard
      const seen = box.getBoundingClientRect(); // where it was clicked
      look(box, ((event.clientX - seen.left) / seen.width - 0.5) * 360, (0.5 - (event.clientY - seen.top) / seen.height) * 180);
    });
    for (const chip of box.parentElement.querySelectorAll("button.view")) {
      chip.disabled = false;
      chip.addEventListener("click", () => look(box, Number(chip.dataset.yaw), Number(chip.dataset.pitch)));
    }
    gone.observe(box);
  }
})();
