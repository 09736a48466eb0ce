// A link to a closed row opens it; without scripts the row is found all the same, closed.
function show() {
  const row = document.getElementById(location.hash.slice(1));
  if (row instanceof HTMLDetailsElement) { row.open = true; row.scrollIntoView(); }
}
addEventListener("hashchange", show);
show();
