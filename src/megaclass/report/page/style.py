"""How the page looks, and the one thing that it does: opening the raw row that a link leads to."""

import base64
import hashlib

CSS = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --sheet: #f6f7f9; --ink: #1a1d23; --muted: #5d6675; --line: #dde1e7; --grid: #dfe3e9;
  --link: #0b57a4; --accent: #0b57a4; --ratio: #0a6b45; --bad: #b3261e; --published-ink: #4a5262;
  --shade: rgb(20 30 50 / .28); --head: rgb(70 90 130 / .05); --tint: rgb(70 90 130 / .035);
  --own-0: #0072b2; --own-1: #d55e00; --own-2: #00875e; --own-3: #b0357f; --own-4: #6a4fc4; --own-5: #8a6100;
  --own-6: #00808f; --own-7: #c2182b;
  --published-0: #7a8494; --published-1: #a08a5c; --published-2: #6f9a86; --published-3: #a57f9b;
  --published-4: #8f86b8; --published-5: #b08a78; --published-6: #6d9aa5; --published-7: #8c8c8c;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --mono: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171c; --sheet: #1c2027; --ink: #e6e9ee; --muted: #9aa4b2; --line: #333a45; --grid: #333a45;
    --link: #7db8f0; --accent: #7db8f0; --ratio: #6fd3a5; --bad: #ff8a80; --published-ink: #b4bdca;
    --shade: rgb(0 0 0 / .75); --head: rgb(150 180 230 / .07); --tint: rgb(150 180 230 / .045);
    --own-0: #56b4e9; --own-1: #ff9248; --own-2: #3fcf9c; --own-3: #f28cc4; --own-4: #ad9bff; --own-5: #e6c14a;
    --own-6: #4fd0dd; --own-7: #ff7f8a;
    --published-0: #8b96a7; --published-1: #b39c6b; --published-2: #7da997; --published-3: #b08ca7;
    --published-4: #9c94c4; --published-5: #bd9886; --published-6: #7aa8b3; --published-7: #9e9e9e;
  }
}
*, *::before, *::after { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-padding-top: 1rem; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 var(--sans);
  overflow-wrap: break-word; }
main, header { max-width: 78rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.5rem; }
h1 { font-size: clamp(1.6rem, 1.2rem + 2vw, 2.4rem); line-height: 1.15; letter-spacing: -.015em; margin: 0 0 .4rem; }
h2 { font-size: 1.45rem; letter-spacing: -.01em; line-height: 1.25; margin: 3.2rem 0 .8rem; padding-top: 1.1rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; line-height: 1.3; margin: 2rem 0 .5rem; }
p, ul.text { max-width: 48rem; margin: .6rem 0; }
ul.text { padding-left: 1.2rem; color: var(--muted); font-size: .9rem; }
.remark, .made { color: var(--muted); font-size: .9rem; }
a { color: var(--link); text-underline-offset: .15em; text-decoration-thickness: 1px; }
a:focus-visible, summary:focus-visible, .scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
nav { margin: 1.4rem 0 0; padding: .9rem 1.1rem; background: var(--sheet); border-radius: .6rem; font-size: .92rem; }
nav ul { list-style: none; margin: 0; padding: 0; columns: 19rem; column-gap: 2rem; }
nav li { break-inside: avoid; padding: .1rem 0; }
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
.heads { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1rem;
  margin: 1rem 0 1.4rem; }
.head { background: var(--sheet); border: 1px solid var(--line); border-radius: .7rem; padding: 1rem 1.15rem; }
.head .number { font-size: 2rem; font-weight: 650; line-height: 1.1; letter-spacing: -.02em;
  font-variant-numeric: tabular-nums; margin: 0; }
.head .number a { color: inherit; text-decoration: none; }
.head .number a:hover { text-decoration: underline; }
.head .unit { font-size: 1rem; font-weight: 450; color: var(--muted); letter-spacing: 0; }
.head p { margin: .35rem 0 0; font-size: .9rem; line-height: 1.4; }
.head .machine { font-weight: 600; }
.head .basis { color: var(--muted); font-size: .82rem; }
.scroll { overflow-x: auto; max-width: 100%; border: 1px solid var(--line); border-radius: .5rem;
  background: linear-gradient(to left, var(--paper) 40%, transparent) right / 3rem 100% no-repeat local,
    linear-gradient(to left, var(--shade), transparent) right / 1.4rem 100% no-repeat scroll; }
.scroll.plain { width: fit-content; }
table { border-collapse: separate; border-spacing: 0; font-size: .88rem; line-height: 1.35; min-width: 100%;
  font-variant-numeric: tabular-nums; }
th, td { padding: .42rem .75rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
tbody tr:last-child > * { border-bottom: 0; }
thead th { font-weight: 600; color: var(--muted); background: var(--head); vertical-align: bottom; min-width: 5rem; }
th.n, td.n { text-align: right; }
td.n { white-space: nowrap; }
td.l { min-width: 4.5rem; max-width: 26rem; }
td.middle { min-width: 9.5rem; }
td.long { min-width: 16rem; }
.beside tbody td:first-child { min-width: 9.5rem; }
.plain td { overflow-wrap: anywhere; min-width: 0; }
.plain td:first-child { white-space: nowrap; color: var(--muted); }
tr.published > * { color: var(--published-ink); background: var(--tint); }
/* The first column says whose the numbers are: it stays while they scroll by. */
tr > :first-child { position: sticky; left: 0; z-index: 1; background: var(--paper);
  border-right: 1px solid var(--line); }
thead th:first-child { background: var(--sheet); }
tr.published > :first-child { background: color-mix(in srgb, var(--sheet) 70%, var(--paper)); }
.plain tr > :first-child { position: static; border-right: 0; }
.beside tr.own > td:first-child { font-weight: 600; }
tr.ratio > * { color: var(--ratio); }
tr.ratio a { color: inherit; }
td a { text-decoration-color: color-mix(in srgb, currentColor 35%, transparent); }
td a.more { font-size: .72rem; margin-left: .2rem; }
.notes { color: var(--muted); font-size: .84rem; margin: .5rem 0 0; padding-left: 1.6rem; max-width: 60rem; }
.bad { color: var(--bad); font-weight: 600; }
.bad a { color: inherit; }
sup { line-height: 0; font-size: .72em; color: var(--muted); }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); gap: 1.2rem; }
figure { margin: 0; min-width: 0; border: 1px solid var(--line); border-radius: .6rem; padding: 1rem 1rem .8rem; }
figure h3 { margin: 0 0 .6rem; }
svg.chart { display: block; width: 100%; height: auto; color: var(--ink); }
svg.chart * { stroke-linejoin: round; stroke-linecap: butt; }
.legend { list-style: none; margin: .6rem 0 0; padding: 0; font-size: .84rem; line-height: 1.35; }
.legend li { display: flex; gap: .55rem; align-items: baseline; padding: .1rem 0; }
.legend li.published { color: var(--published-ink); }
.legend svg { flex: none; width: 28px; height: 10px; }
.legend span { min-width: 0; overflow-wrap: anywhere; }
details { border: 1px solid var(--line); border-radius: .4rem; margin: .35rem 0; font-size: .86rem; }
summary { cursor: pointer; padding: .35rem .7rem; overflow-wrap: anywhere; }
details:target { border-color: var(--accent); box-shadow: 0 0 0 1px var(--accent); }
pre { font: .78rem/1.45 var(--mono); margin: 0; padding: .3rem .7rem .7rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
footer { max-width: 78rem; margin: 3rem auto 0; padding: 1.2rem 1.25rem 2.5rem; color: var(--muted);
  font-size: .85rem; }
@media (max-width: 40rem) {
  header { padding-top: 1.5rem; }
  main, header, footer { padding-left: .9rem; padding-right: .9rem; }
  h2 { margin-top: 2.4rem; }
  th, td { padding: .38rem .5rem; }
  thead th { min-width: 0; }
  td.l, td.middle { min-width: 3.4rem; }
  td.long { min-width: 10rem; }
  tr > :first-child, .beside tbody td:first-child { min-width: 6.2rem; max-width: 7.6rem; overflow-wrap: anywhere; }
  .plain td, .plain td.long { min-width: 0; }
  .plain td:first-child { white-space: normal; overflow-wrap: break-word; }
  figure { padding: .8rem .6rem .6rem; }
}
@media print {
  :root { color-scheme: light; }
  body { font-size: 10pt; }
  nav, #rows { display: none; }
  .scroll { overflow: visible; border: 0; background: none; }
  tr > :first-child { position: static; }
  table { font-size: 7.5pt; }
  td.n, .beside tbody td:first-child { white-space: normal; min-width: 0; }
  tr, figure, .head { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  a { color: inherit; text-decoration: none; }
}
""".strip()

# A link to a closed row opens it; without scripts the row is found all the same, closed.
SCRIPT = """
function show() {
  const row = document.getElementById(location.hash.slice(1));
  if (row instanceof HTMLDetailsElement) { row.open = true; row.scrollIntoView(); }
}
addEventListener("hashchange", show);
show();
""".strip()

_HASH = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
# Nothing is fetched from anywhere, and no script runs but the one above, whatever stands in the rows.
POLICY = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_HASH}'; img-src data:"
