// What the page says, in the language that the host is set to.

export const TEXTS = { en: {}, zh: {} };

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
    play: "Play", pause: "Pause", frame: "Frame", speed: "Speed",
    reset: "Reset view", resetTip: "Back to the input view (Home)",
    wide: "Full screen", help: "How to move",
    through: "Look through",
    throughTip: "See what the path's camera sees, as Render does in the mode nearest (C)",
    throughExact: "Camera {frame}, as rendered",
    throughHalf: "Camera {frame}, not all points",
    size: "Point size",
    trails: "Trails", trailsTip: "Where moving points were in the 12 frames before",
    trailsNone: "Points of this scene are not followed over time",
    unseen: "Hidden", unseenTip: "Draw points that are hidden in this frame too, in red",
    holes: "Holes", holesTip: "Magenta where there is nothing, and a render has to be filled",
    frusta: "Cameras", frustaTip: "Draw the camera path, green to orange, and the camera of now",
    full: "Load all", fullTip: "Load every point of the scene",
    screenshot: "Screenshot",
    screenshotTip: "Save a PNG; looking through a camera, in that camera's size",
    canvas: "4D scene. W A S D Q E fly, arrows look around, space plays, comma and full stop "
      + "step, Home resets, C looks through the camera.",
    hint: "Drag to orbit, W A S D to fly",
    run: "Run the workflow to see the scene.", runNode: "Show the scene",
    loading: "Loading {part}", failed: "The scene could not be loaded ({why}).",
    lostLink: "The connection was lost while the scene was loading.", again: "Try again",
    gone: "The host no longer has this scene. Run the workflow again.",
    noWebGL: "This browser does not offer WebGL2 here, so the scene cannot be shown. Switch on "
      + "hardware acceleration, or close other 3D pages. Everything else works without it.",
    lostContext: "The browser took the graphics memory back. It returns as soon as there is some.",
    tooLarge: "The graphics card has no memory for so many points.", keep: "Keep fewer",
    empty: "The scene has no points.",
    some: "{shown} of {all} points", everything: "All {all} points",
    someTip: "One pixel of {stride} each way",
    orbitHow: "drag", orbitWhat: "orbit",
    panHow: "right drag, Shift + drag", panWhat: "move sideways",
    nearerHow: "wheel, + and -", nearerWhat: "nearer, farther",
    zoomHow: "Alt + wheel", zoomWhat: "zoom the lens",
    centerHow: "double click", centerWhat: "orbit about that point",
    flyHow: "W A S D, Q E", flyWhat: "fly, down and up; Shift: faster",
    lookHow: "arrows", lookWhat: "look around",
    playHow: "Space", playWhat: "play, pause",
    stepHow: ", and .", stepWhat: "a frame back, forward",
    homeHow: "Home, C", homeWhat: "input view, the path's camera",
  },
  zh: {
    play: "播放", pause: "暂停", frame: "帧", speed: "速度",
    reset: "重置视角", resetTip: "回到输入视角（Home）",
    wide: "全屏", help: "操作方法",
    through: "相机视角",
    throughTip: "显示路径相机所见的画面，与渲染节点的 nearest 模式一致（C）",
    throughExact: "相机 {frame}，与渲染一致",
    throughHalf: "相机 {frame}，非全部点",
    size: "点大小",
    trails: "轨迹", trailsTip: "显示运动点在之前 12 帧中的位置",
    trailsNone: "此场景的点没有随时间跟踪",
    unseen: "被遮挡", unseenTip: "同时画出本帧中被遮挡的点，以红色显示",
    holes: "空洞", holesTip: "没有内容、渲染后需要填补的地方显示为品红色",
    frusta: "相机", frustaTip: "画出相机路径（由绿到橙）和当前相机",
    full: "全部加载", fullTip: "加载场景的所有点",
    screenshot: "截图",
    screenshotTip: "保存 PNG；处于相机视角时使用该相机的尺寸",
    canvas: "4D 场景。W A S D Q E 飞行，方向键转动视线，空格播放，逗号和句号逐帧，Home 重置，C 切换相机视角。",
    hint: "拖动以环绕，W A S D 飞行",
    run: "运行工作流后即可查看场景。", runNode: "显示场景",
    loading: "正在加载 {part}", failed: "无法加载场景（{why}）。",
    lostLink: "加载场景时连接中断。", again: "重试",
    gone: "主机上已没有此场景，请重新运行工作流。",
    noWebGL: "此浏览器在这里不提供 WebGL2，无法显示场景。请开启硬件加速或关闭其他 3D 页面。其余功能不受影响。",
    lostContext: "浏览器收回了显存；一有空闲显存便会恢复。",
    tooLarge: "显卡内存不足，无法容纳这么多点。", keep: "保留较少的点",
    empty: "场景中没有点。",
    some: "{all} 个点中的 {shown} 个", everything: "全部 {all} 个点",
    someTip: "横竖每 {stride} 个像素取一个",
    orbitHow: "拖动", orbitWhat: "环绕",
    panHow: "右键拖动、Shift + 拖动", panWhat: "平移",
    nearerHow: "滚轮、+ 和 -", nearerWhat: "靠近、远离",
    zoomHow: "Alt + 滚轮", zoomWhat: "变焦",
    centerHow: "双击", centerWhat: "以该点为中心环绕",
    flyHow: "W A S D、Q E", flyWhat: "飞行、下降和上升；Shift：加速",
    lookHow: "方向键", lookWhat: "转动视线",
    playHow: "空格", playWhat: "播放、暂停",
    stepHow: ", 和 .", stepWhat: "上一帧、下一帧",
    homeHow: "Home、C", homeWhat: "输入视角、路径相机",
  },
});
