// Which address shows which page, and how pages are kept up to date.

import { ask, Failure, h, problem, redraw } from './dom.js';
import { overview, pipeline, runs } from './overview.js';
import { run, stage } from './run.js';
import { curves } from './curves.js';
import { artifact, artifacts } from './artifacts.js';
import { compare } from './compare.js';
import { sql } from './sql.js';

const main = document.getElementById('main');
const told = document.getElementById('told');

const PAGES = [
  [[], overview, 'Overview'],
  [['pipelines', '*'], pipeline, 'Pipeline'],
  [['runs'], runs, 'Runs'],
  [['runs', '*'], run, 'Run'],
  [['runs', '*', 'stage', '*'], stage, 'Stage'],
  [['runs', '*', '*'], run, 'Run'],
  [['curves'], curves, 'Curves'],
  [['artifacts'], artifacts, 'Artifacts'],
  [['artifacts', '*'], artifact, 'Artifact'],
  [['compare'], compare, 'Compare'],
  [['sql'], sql, 'SQL'],
];

/** What a page may use while it is shown. */
class Shown {
  constructor() {
    this.leaving = new AbortController();
    this.signal = this.leaving.signal;
  }

  /** Asks now and again; `draw` hears of what changed, `pause` says how many milliseconds to wait, or nothing to end. */
  watch(path, draw, pause) {
    let before;
    const look = async () => {
      if (this.signal.aborted) return;
      let next = 3000;
      try {
        const data = document.hidden && before ? before : await ask(path, this.signal);
        if (this.signal.aborted) return;
        say('');
        if (data !== before) draw(data);
        before = data;
        next = pause ? pause(data) : undefined;
      } catch (error) {
        if (this.signal.aborted) return;
        if (!before || error instanceof Failure) return this.fail(error);
        say('The server does not answer. Trying again…');
      }
      if (next) setTimeout(look, next);
    };
    return look();
  }

  /** Asks once; fails where the page is left before the answer. */
  ask(path) { return ask(path, this.signal); }

  /** Lets work go on that the page does not wait for; its failure is the page's. */
  beside(work) { work.catch(error => this.fail(error)); }

  fail(error) {
    if (!this.signal.aborted) redraw(main, problem(error));
  }
}

function say(text) {
  if (told.textContent !== text) told.textContent = text;
}

function matches(pattern, parts) {
  if (pattern.length !== parts.length) return undefined;
  const named = [];
  for (const [place, part] of pattern.entries()) {
    if (part === '*') named.push(parts[place]);
    else if (part !== parts[place]) return undefined;
  }
  return named;
}

let shown;

async function show() {
  const address = location.hash || '#/';
  if (!address.startsWith('#/')) return;
  shown?.leaving.abort();
  shown = new Shown();
  const own = shown;
  const [path, pairs] = address.slice(2).split('?');
  const parts = path.split('/').filter(part => part).map(part => {
    try { return decodeURIComponent(part); } catch { return part; }
  });
  const here = parts[0] === 'pipelines' ? undefined : parts[0] === 'compare' ? 'runs' : parts[0] || '';
  for (const other of document.querySelectorAll('nav a')) {
    if (other.getAttribute('href') === `#/${here}`) other.setAttribute('aria-current', 'page');
    else other.removeAttribute('aria-current');
  }
  const found = PAGES.map(([pattern, page, title]) => [matches(pattern, parts), page, title]).find(([named]) => named);
  if (!found) return redraw(main, h('p', {}, 'There is no such page.'));
  const [named, page, title] = found;
  document.title = [...named.slice().reverse(), named.length ? '' : title, 'Sluice'].filter(word => word).join(' · ');
  const root = h('div', { class: 'page' });
  try {
    await page({ root, named, pairs: new URLSearchParams(pairs), shown: own, place: () => main.replaceChildren(root) });
  } catch (error) {
    own.fail(error);
  }
}

// The token let the browser in; from now on a cookie does, and the address can be shown to others.
if (new URLSearchParams(location.search).has('token')) history.replaceState(null, '', '/' + location.hash);
document.querySelector('.skip').addEventListener('click', event => { event.preventDefault(); main.focus(); });
addEventListener('hashchange', show);
show();
