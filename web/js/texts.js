// What the page says, in the language that the host is set to.

const TEXTS = { en: {}, zh: {} };

/** Add texts: {en: {key: "... {name} ..."}, zh: {...}}. */
export function addTexts(texts) {
  for (const [language, table] of Object.entries(texts)) Object.assign(TEXTS[language], table);
}

/** The text of a key; {name} is replaced by values.name. */
export function text(key, values = {}) {
  const found = TEXTS[language()][key] ?? TEXTS.en[key] ?? key;
  return found.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

function language() {
  const chosen = globalThis.app?.extensionManager?.setting?.get?.("Comfy.Locale");
  return String(chosen ?? navigator.language).startsWith("zh") ? "zh" : "en";
}

addTexts({
  en: {
    play: "Play", pause: "Pause", frame: "Frame", frameOf: "{frame} / {frames}",
    reset: "Reset view", resetTip: "Back to the input view (Home)",
    through: "Look through", throughTip: "See exactly what the path's camera sees, as the render",
    size: "Point size", trails: "Trails", trailsTip: "Where points came from in the last 12 frames",
    unseen: "Hidden points", unseenTip: "Draw points that are hidden in this frame too, in red",
    holes: "Holes", holesTip: "Magenta where there is nothing",
    frusta: "Cameras", frustaTip: "Draw the camera path",
    full: "Full density", fullTip: "Load every point", screenshot: "Screenshot",
    screenshotTip: "Save a PNG; looking through a camera, in that camera's size",
    canvas: "4D scene. Drag: orbit. Right drag: pan. Wheel: nearer. Alt+wheel: zoom. Double click: "
      + "centre. W A S D Q E: fly. Arrows: look around. Space: play. , and .: step. Home: reset.",
    run: "Run the workflow to see the scene.",
    loading: "Loading: {part}", failed: "The scene could not be loaded ({why}).",
    lostLink: "The connection was lost while the scene was loading.", again: "Try again",
    gone: "The host no longer has this scene. Run the workflow again.",
    noWebGL: "This browser does not offer WebGL2 here, so the scene cannot be shown. Switch on "
      + "hardware acceleration, or close other 3D pages. Everything else works without it.",
    lostContext: "The browser took the graphics memory back. It returns as soon as there is some.",
    tooLarge: "The graphics card has no memory for so many points.",
    empty: "The scene has no points.",
    every: "{shown} of {all} points (every {stride}. pixel each way)",
    everyHalf: "{shown} of {all} points (every second pixel each way)",
    everything: "All {all} points",
  },
  zh: {
    play: "播放", pause: "暂停", frame: "帧", frameOf: "{frame} / {frames}",
    reset: "重置视角", resetTip: "回到输入视角（Home）",
    through: "相机视角", throughTip: "精确显示路径相机所见的画面，与渲染一致",
    size: "点大小", trails: "轨迹", trailsTip: "显示各点最近 12 帧的来路",
    unseen: "被遮挡点", unseenTip: "同时画出本帧中被遮挡的点，以红色显示",
    holes: "空洞", holesTip: "没有内容的地方显示为品红色",
    frusta: "相机", frustaTip: "画出相机路径",
    full: "完整密度", fullTip: "加载所有点", screenshot: "截图",
    screenshotTip: "保存 PNG；处于相机视角时使用该相机的尺寸",
    canvas: "4D 场景。拖动：环绕；右键拖动：平移；滚轮：靠近；Alt+滚轮：变焦；双击：设为中心；"
      + "W A S D Q E：飞行；方向键：转动视线；空格：播放；, 和 .：逐帧；Home：重置。",
    run: "运行工作流后即可查看场景。",
    loading: "正在加载：{part}", failed: "无法加载场景（{why}）。",
    lostLink: "加载场景时连接中断。", again: "重试",
    gone: "主机上已没有此场景，请重新运行工作流。",
    noWebGL: "此浏览器在这里不提供 WebGL2，无法显示场景。请开启硬件加速或关闭其他 3D 页面。其余功能不受影响。",
    lostContext: "浏览器收回了显存；一有空闲显存便会恢复。",
    tooLarge: "显卡内存不足，无法容纳这么多点。",
    empty: "场景中没有点。",
    every: "{all} 个点中的 {shown} 个（横竖每 {stride} 个像素取一）",
    everyHalf: "{all} 个点中的 {shown} 个（横竖每隔一个像素）",
    everything: "全部 {all} 个点",
  },
});
