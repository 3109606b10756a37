// Two runs beside each other: what was changed, what followed, and which values are other ones.

import { api, facts, h, link, put, redraw, table } from './dom.js';
import { badge, count, counts, figure, seconds, short, when } from './words.js';

/** Stages whose values are shown at once: the last ones, where results are. */
const OPEN = 3;

export async function compare({ root, pairs, shown, place }) {
  const [old, later] = [pairs.get('old'), pairs.get('new')];
  const data = await shown.ask(api(['compare'], { old, new: later }));
  const side = run => [h('a', { href: link(['runs', run.run]), class: 'mono' }, run.run), run.pipeline, badge(run.state), when(run.started), seconds(run.seconds), counts(run.counts), run.command.join(' ')];
  const list = h('div');
  put(root, h('h1', {}, 'Compare'), table([['run', ''], ['pipeline', ''], ['state', ''], ['began (UTC)', ''], ['took', 'number'], ['stages', ''], ['changed', '']], [side(data.old), side(data.new)], { caption: 'Old and new' }),
    h('p', {}, h('a', { href: link(['compare'], { old: later, new: old }) }, 'The other way round')),
    facts([['seed', data.seed && `${data.seed[0]} → ${data.seed[1]}`], ['pipeline', data.pipeline && `${data.pipeline[0]} → ${data.pipeline[1]}`],
      ['stages', `${data.equal} equal, ${data.stages.length} with another key, ${data.only_old.length + data.only_new.length} only in one`],
      ['only in the old', data.only_old.join(', ')], ['only in the new', data.only_new.join(', ')]]), list);
  place();
  const parts = data.stages.map((stage, place) => {
    const box = h('div');
    let asked = false;
    const load = async () => {
      if (asked) return;
      asked = true;
      try {
        redraw(box, values(await shown.ask(api(['compare', 'stage'], { old, new: later, stage: stage.stage }))));
      } catch (error) {
        redraw(box, h('p', { class: 'soft' }, error.message));
      }
    };
    const part = h('details', { class: 'difference', ontoggle: event => event.target.open && load() },
      h('summary', {}, h('b', {}, stage.stage), ' ', stage.because.join('; ') || 'the record of a key is gone'),
      h('p', { class: 'soft mono' }, `key ${short(stage.keys[0])} → ${short(stage.keys[1])}`), box);
    part.open = place >= data.stages.length - OPEN;
    return part;
  });
  redraw(list, parts.length ? h('h2', {}, 'Stages with another key') : h('p', {}, 'All stages that both have are the same.'), parts);
}

function values(data) {
  const show = value => value === null ? 'none' : count(value);
  if (!data.ports.length) return h('p', { class: 'soft' }, 'It made the same.');
  return data.ports.map(port => {
    const rows = port.rows[0] === port.rows[1] ? `${show(port.rows[0])} rows` : `rows ${show(port.rows[0])} → ${show(port.rows[1])}`;
    const changed = (port.values?.changed || []).map(value => {
      const both = value.old !== null && value.new !== null;
      const by = both ? value.new - value.old : null;
      return [value.row, value.column, figure(value.old), figure(value.new), both ? h('span', { class: by > 0 ? 'up' : 'down' }, `${by > 0 ? '+' : ''}${figure(by)}`) : ''];
    });
    const more = port.values && port.values.rows_gone + port.values.rows_new ? `; ${port.values.rows_gone} rows only before, ${port.values.rows_new} only after` : '';
    return [h('p', {}, h('b', {}, port.port), `: ${rows}${more}`), port.columns_gone.map(column => h('p', {}, `column gone: ${column}`)), port.columns_new.map(column => h('p', {}, `column new: ${column}`)),
      changed.length ? table([['row', ''], ['column', ''], ['old', 'number'], ['new', 'number'], ['by', 'number']], changed, { caption: `Values of ${port.port}` }) : ''];
  });
}
