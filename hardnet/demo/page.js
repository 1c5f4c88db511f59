// The demo page: turn drops, pastes, clicks and choices into orders for the server. Runs once, in the drop field.
const language = navigator.language.toLowerCase().startsWith("ko") ? "ko" : "en";
document.documentElement.lang = language;
let wanted = null; // {example: its name} or {files: [File]}

const choice = () => document.querySelector("#choice");

function tellAbout() {
  document.querySelector("#about").textContent = choice().selectedOptions[0].dataset.about;
}

async function submit(next) {
  wanted = next;
  const order = { language, choice: choice().value, example: wanted.example || "", files: [] };
  const files = wanted.files || [];
  for (const [index, file] of files.entries()) {
    props.status = `${props.uploading[language]} ${index + 1} / ${files.length}`;
    if (file.size > props.limit) {
      order.files.push(["", file.name, "large"]);
      continue;
    }
    try {
      // Under a random name: equal files of two visitors must not share a path, as each is deleted when it was read.
      const suffix = file.name.match(/\.\w{1,5}$/) || "";
      const stored = await upload(new File([file], Math.random().toString(36).slice(2) + suffix));
      order.files.push([stored.path, file.name, ""]);
    } catch {
      order.files.push(["", file.name, "refused"]);
    }
    if (wanted !== next) return;
  }
  props.value = order;
  trigger("submit");
  if (element.getBoundingClientRect().top < 0) element.scrollIntoView();
}

element.addEventListener("change", (event) => {
  const files = [...event.target.files].slice(0, props.most);
  event.target.value = ""; // so that choosing the same file again is a change
  if (files.length) submit({ files });
});
for (const kind of ["dragover", "dragleave", "drop"])
  element.addEventListener(kind, () => element.classList.toggle("over", kind === "dragover"));

document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (files.length) submit({ files });
});

document.addEventListener("change", (event) => {
  if (event.target !== choice()) return;
  tellAbout();
  if (wanted) submit(wanted);
});

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-example], [data-choose], [data-again]");
  if (!button) return;
  if (button.dataset.example) submit({ example: button.dataset.example });
  else if (button.dataset.choose) {
    choice().value = button.dataset.choose;
    choice().dispatchEvent(new Event("change", { bubbles: true }));
  } else if (wanted) submit(wanted);
});

(function wait() {
  choice() ? tellAbout() : setTimeout(wait, 50);
})();
