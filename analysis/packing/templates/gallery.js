
const rows = [...document.querySelectorAll(".gallery tbody tr")];
const text = document.getElementById("text");
const selects = [...document.querySelectorAll("select[data-of]")];
const inRow = row => [...row.cells].map(cell => (cell.querySelector("a") || cell).textContent).join(" ").toLowerCase();
const wordsOf = row => `${inRow(row)} ${inRow(row).replace(/(\d),(?=\d{3})/g, "$1")}`; // 16,384 and 16384
function filter() {
  const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const row of rows) {
    const chosen = selects.every(({value, dataset: {of}}) => !value || (of === "strategy" ? row.dataset[of].split(" ").includes(value) : row.dataset[of] === value));
    row.hidden = !(chosen && words.every(word => wordsOf(row).includes(word)));
    count += !row.hidden;
  }
  document.getElementById("count").textContent = `${count} of ${rows.length} settings`;
  document.getElementById("none").hidden = count > 0;
}
if (text) {
  document.querySelector(".filters").hidden = false;
  text.addEventListener("input", filter);
  for (const select of selects) select.addEventListener("change", filter);
  document.getElementById("reset").addEventListener("click", () => {
    text.value = "";
    for (const select of selects) select.value = "";
    filter();
    text.focus();
  });
  filter();
}
async function copy(pre) {
  try {
    await navigator.clipboard.writeText(pre.textContent);
    return true;
  } catch {
    getSelection().selectAllChildren(pre);
    return document.execCommand("copy");
  }
}
for (const button of document.querySelectorAll(".copy")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const done = await copy(button.parentElement.nextElementSibling);
    button.textContent = done ? "Copied" : "Marked: press Ctrl+C";
    document.getElementById("said").textContent = done ? "The command was copied." : "The command is marked.";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
}
