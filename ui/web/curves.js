// Figures that stages tell while they run, as lines: of one run, or of the runs of a pipeline over each other.

import { api, h, link, put, redraw } from './dom.js';
import { ago, badge, count } from './words.js';
import { chart } from './chart.js';

/** Charts by figure, kept and drawn anew. */
function charts(box) {
  const drawn = new Map();
  return groups => {
    for (const [name, { unit, series }] of groups) {
      if (!drawn.has(name)) {
        const made = chart(name, unit);
        drawn.set(name, made);
        box.append(made.box);
      }
      drawn.get(name).set(series);
    }
    for (const [name, made] of drawn) {
      if (!groups.has(name)) { made.box.remove(); drawn.delete(name); }
    }
  };
}

/** The charts of one run, live. */
export async function runCurves(body, name, shown) {
  const box = h('div', { class: 'charts' });
  const none = h('p', { class: 'soft' });
  redraw(body, none, box);
  const draw = charts(box);
  await shown.watch(api(['runs', name, 'curves']), data => {
    none.textContent = data.curves.length ? '' : 'No stage of this run told figures.';
    const groups = new Map();
    for (const curve of data.curves) {
      if (!groups.has(curve.figure)) groups.set(curve.figure, { unit: curve.unit, series: [] });
      groups.get(curve.figure).series.push({ name: curve.made_by ? `${curve.stage} (reused)` : curve.stage, points: curve.points, href: link(['runs', name, 'stage', curve.stage]) });
    }
    draw(groups);
  }, data => data.state === 'running' ? 1000 : undefined);
}

const MOST = 8;

export async function curves({ root, pairs, shown, place }) {
  const wanted = pairs.get('pipeline');
  const list = await shown.ask(api(['runs'], { pipeline: wanted }));
  const name = wanted || list.runs[0]?.pipeline;
  const runs = list.runs.filter(run => run.pipeline === name);
  const select = h('select', { onchange: event => { location.hash = link(['curves'], { pipeline: event.target.value }); } },
    list.pipelines.map(value => h('option', { value, selected: value === name }, value)));
  const box = h('div', { class: 'charts' });
  const none = h('p', { class: 'soft', role: 'status' }, 'Loading…');
  const chosen = new Set(runs.filter(run => run.counts.ran || run.counts.running).slice(0, MOST).map(run => run.run));
  const found = new Map();
  const drawCharts = charts(box);
  const draw = () => {
    const groups = new Map();
    for (const run of runs.filter(run => chosen.has(run.run))) {
      for (const curve of (found.get(run.run)?.curves || []).filter(curve => !curve.made_by)) {
        const key = `${curve.stage.split('[')[0]}: ${curve.figure}`;
        if (!groups.has(key)) groups.set(key, { unit: curve.unit, series: [] });
        const axes = curve.stage.includes('[') ? ` ${curve.stage.slice(curve.stage.indexOf('['))}` : '';
        groups.get(key).series.push({ name: run.run + axes, points: curve.points, href: link(['runs', run.run, 'curves']) });
      }
    }
    none.textContent = groups.size ? '' : 'No stage of the chosen runs told figures. Runs that reused everything have none of their own.';
    drawCharts(groups);
  };
  const load = run => {
    if (found.has(run)) return draw();
    found.set(run, undefined);
    return shown.watch(api(['runs', run, 'curves']), data => { found.set(run, data); draw(); }, data => data.state === 'running' ? 1000 : undefined);
  };
  const choice = run => h('li', {}, h('label', { class: 'check' }, h('input', { type: 'checkbox', checked: chosen.has(run.run), onchange: event => {
    if (event.target.checked) chosen.add(run.run); else chosen.delete(run.run);
    load(run.run);
  } }), h('span', { class: 'mono' }, run.run), ' ', badge(run.state), ' ', ago(run.started)));
  put(root, h('h1', {}, 'Curves'), h('div', { class: 'filters' }, h('label', {}, 'pipeline', select), h('span', { class: 'soft' }, `${count(runs.length)} newest runs`)),
    h('details', { class: 'choice' }, h('summary', {}, 'Choose runs'), h('ul', {}, runs.map(choice))), none, box);
  place();
  if (!chosen.size) draw();
  for (const run of [...chosen]) await load(run);
}
