"""How the page looks, light and dark, from a phone to a desktop; and the script that sorts its tables."""

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --text: #1c2430; --soft: #5c6878; --line: #dfe3e8;
  --accent: #1f6feb; --good: #2c9a5b; --bad: #cf4a3c;
  --c0: #1f6feb; --c1: #d9730d; --c2: #2c9a5b; --c3: #b0379f; --c4: #8a6d1d; --c5: #0f8f9b; }
@media (prefers-color-scheme: dark) { :root { --page: #12161c; --card: #1b212a; --text: #e4e9f0; --soft: #98a4b3;
  --line: #313a46; --accent: #6ea8ff; --good: #57c98a; --bad: #ff8577;
  --c0: #6ea8ff; --c1: #ffab5c; --c2: #57c98a; --c3: #e78bd8; --c4: #d9bd62; --c5: #57ccd6; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0 0; }
h2 { font-size: 1.1rem; margin: 0 0 .75rem; }
a { color: var(--accent); }
code, pre { font: .85em/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { white-space: pre-wrap; margin: .5rem 0 0; }
.soft, figcaption, th, dt { color: var(--soft); }
section { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1rem; margin: 1rem 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr)); gap: .75rem;
  padding: 0; border: 0; background: none; }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .7rem .9rem; }
.tiles b { display: block; font-size: 1.5rem; font-weight: 650; font-variant-numeric: tabular-nums; }
.tiles span { color: var(--soft); font-size: .85rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: 1rem 1.5rem; }
.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 14rem), 1fr)); }
figure { margin: 0; }
.chart svg { width: 100%; height: auto; display: block; }
.chart line { stroke: var(--line); vector-effect: non-scaling-stroke; }
.chart text { fill: var(--soft); font-size: 12px; }
.chart .x { text-anchor: middle; } .chart .y, .chart .label { text-anchor: end; }
.chart polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; vector-effect: non-scaling-stroke; }
.c0 { stroke: var(--c0); --own: var(--c0); } .c1 { stroke: var(--c1); --own: var(--c1); }
.c2 { stroke: var(--c2); --own: var(--c2); } .c3 { stroke: var(--c3); --own: var(--c3); }
.c4 { stroke: var(--c4); --own: var(--c4); } .c5 { stroke: var(--c5); --own: var(--c5); }
circle { fill: var(--own); }
.legend { margin: .1rem 0 0; font-size: .82rem; display: flex; flex-wrap: wrap; gap: .1rem .9rem; }
.legend span::before { content: ""; display: inline-block; width: .7em; height: .7em; border-radius: .2em;
  margin-right: .35em; background: var(--own); }
.examples { display: flex; flex-wrap: wrap; gap: 1rem; margin-bottom: 1rem; }
.examples figure { max-width: 100%; } .examples img { display: block; max-width: 100%; border-radius: .35rem; }
.examples figcaption { font-size: .82rem; line-height: 1.35; contain: inline-size; }
.wrong { color: var(--bad); } .right { color: var(--good); }
.picture { display: block; max-width: 100%; height: auto; background: #fff; border-radius: .35rem; }
.scroll { overflow: auto; max-height: 34rem; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; }
th, td { text-align: left; padding: .3rem 1rem .3rem 0; vertical-align: baseline;
  border-bottom: 1px solid var(--line); }
thead th { position: sticky; top: 0; background: var(--card); }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid var(--accent); }
.bar { background: linear-gradient(var(--accent), var(--accent)) no-repeat left 1px bottom 2px / var(--part) 4px;
  min-width: 7rem; padding-bottom: .5rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: 0; }
dd { margin: 0; min-width: 0; }
summary { cursor: pointer; color: var(--accent); }
@media (max-width: 40rem) { body { padding: .5rem; } section { padding: .75rem; } .examples { gap: .75rem; }
  .examples img { max-height: 9rem; } dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; } }
"""

#: Sorts a table by a column whose heading is clicked. Without it the tables are in the order of their files.
SCRIPT = """
for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => {
  const head = button.parentElement, body = head.closest("table").tBodies[0], column = head.cellIndex;
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = row => row.cells[column].textContent.trim();
  const order = (a, b) => value(a) === "" ? 1 : value(b) === "" ? -1
    : value(a).localeCompare(value(b), undefined, {numeric: true}) * (down ? -1 : 1);
  body.append(...[...body.rows].sort(order));
});
"""
