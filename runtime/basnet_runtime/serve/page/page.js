// One picture, one result: what is chosen goes to this server's own routes, and nothing goes anywhere else.
const at = (id) => document.getElementById(id);
const form = at("options");
let picture = null;
let asked = null;
let shown = [];

const say = (text, isError = false) => {
  at("status").textContent = text;
  at("status").classList.toggle("error", isError);
};

const request = () => {
  const kind = form.elements.kind.value;
  const query = new URLSearchParams({ feather: at("feather").value });
  if (at("hard").checked) query.set("threshold", at("threshold").value);
  const body = new FormData();
  body.append("image", picture);
  let route = kind;
  if (["color", "blur", "picture"].includes(kind)) {
    route = "compose";
    const background = at("background").files[0];
    if (kind === "picture") {
      if (!background) return null;
      body.append("background", background);
    } else {
      query.set("kind", kind === "color" ? `color:${at("color").value}` : "blur");
    }
  }
  return [`v1/${route}?${query}`, body, route];
};

const update = async () => {
  const kind = form.elements.kind.value;
  at("color-field").hidden = kind !== "color";
  at("background-field").hidden = kind !== "picture";
  at("threshold-field").hidden = !at("hard").checked;
  for (const output of form.querySelectorAll("output")) {
    const input = at(output.htmlFor.value);
    output.value = Number(input.value).toFixed(input.id === "threshold" ? 2 : 0);
  }
  if (!picture) return;
  asked?.abort();
  const wanted = request();
  if (!wanted) {
    say("Choose a background picture.");
    return;
  }
  asked = new AbortController();
  const mine = asked;
  const [address, body, route] = wanted;
  const token = at("token").value.trim();
  say("Working …");
  try {
    const answer = await fetch(address, {
      method: "POST",
      body,
      signal: mine.signal,
      headers: token ? { Authorization: `Bearer ${token}` } : {},
    });
    if (!answer.ok) {
      const problem = await answer.json().catch(() => ({ detail: `status ${answer.status}` }));
      if (answer.status === 401) at("token-field").hidden = false;
      say(problem.detail, true);
      return;
    }
    show(await answer.blob(), route, answer.headers);
  } catch (error) {
    if (error.name !== "AbortError") say("The server does not answer.", true);
  }
};

const show = (result, route, headers) => {
  shown.forEach((address) => URL.revokeObjectURL(address));
  shown = [URL.createObjectURL(picture), URL.createObjectURL(result)];
  const [before, after] = [at("before"), at("after")];
  // A format that the browser does not show (TIFF, HEIC) leaves the result alone.
  before.onerror = () => {
    before.src = shown[1];
    at("slider").value = 0;
    slide();
  };
  before.src = shown[0];
  after.src = shown[1];
  at("download").href = shown[1];
  at("download").download = `${picture.name.replace(/\.[^.]*$/, "") || "picture"}.${route}.png`;
  const score = Number(headers.get("X-Salience-Score")).toFixed(3);
  at("decision").textContent =
    headers.get("X-Salient") === "true" ? `Object found, score ${score}` : `No salient object, score ${score}`;
  at("view").hidden = false;
  say("Done. Drag across the picture, or use the arrow keys, to compare.");
};

const slide = () => at("compare").style.setProperty("--share", `${at("slider").value}%`);

const take = (file) => {
  if (!file) return;
  picture = file;
  at("view").hidden = true; // the result of the picture before must not pass for this one's
  update();
};

at("file").addEventListener("change", () => take(at("file").files[0]));
at("slider").addEventListener("input", slide);
let later = 0;
form.addEventListener("input", (event) => {
  if (event.target === at("file")) return;
  clearTimeout(later);
  later = setTimeout(update, event.target.type === "range" || event.target.type === "color" ? 150 : 0);
});
form.addEventListener("submit", (event) => event.preventDefault());
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", name === "dragenter" || name === "dragover");
    if (name === "drop") take(event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", (event) => take(event.clipboardData.files[0]));
at("drop").addEventListener("keydown", (event) => {
  if (event.key === "Enter") at("file").click();
});
