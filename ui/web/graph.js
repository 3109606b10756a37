// Stages and what they read, as a drawing in layers; it is laid out once, states change in place.

import { s } from './dom.js';

const [WIDTH, HEIGHT, ACROSS, DOWN] = [172, 52, 22, 40];

/** Every node one layer below the lowest that it reads. */
function layers(nodes, reads) {
  const of = nodes.map(() => 0);
  for (let round = 0; round < nodes.length; round += 1) {
    let moved = false;
    nodes.forEach((_, index) => {
      const above = reads[index].reduce((most, read) => Math.max(most, of[read] + 1), 0);
      if (above !== of[index] && above <= nodes.length) { of[index] = above; moved = true; }
    });
    if (!moved) break;
  }
  return of;
}

/** Places of nodes: layers from top to bottom, and in a layer near what they read and what reads them. */
function places(nodes, reads) {
  const layer = layers(nodes, reads);
  // A source stands just above the first that reads it.
  const readers = nodes.map(() => []);
  reads.forEach((list, index) => list.forEach(read => readers[read].push(index)));
  nodes.forEach((_, index) => {
    if (!reads[index].length && readers[index].length) layer[index] = Math.min(...readers[index].map(reader => layer[reader])) - 1;
  });
  const rows = [];
  layer.forEach((at, index) => { (rows[at] ||= []).push(index); });
  const x = nodes.map(() => 0);
  const widest = Math.max(1, ...rows.map(row => row.length));
  const spread = row => row.forEach((index, place) => { x[index] = (widest - row.length) / 2 + place; });
  rows.forEach(spread);
  const mean = list => list.reduce((sum, other) => sum + x[other], 0) / list.length;
  for (let round = 0; round < 6; round += 1) {
    const near = round % 2 ? readers : reads;
    const order = round % 2 ? [...rows].reverse() : rows;
    for (const row of order) {
      const wish = new Map(row.map(index => [index, near[index].length ? mean(near[index]) : x[index]]));
      row.sort((a, b) => wish.get(a) - wish.get(b) || a - b);
      spread(row);
    }
  }
  return {
    x: x.map(place => ACROSS + place * (WIDTH + ACROSS)),
    y: layer.map(at => 8 + at * (HEIGHT + DOWN)),
    width: ACROSS + widest * (WIDTH + ACROSS),
    height: rows.length * (HEIGHT + DOWN) - DOWN + 16,
  };
}

const cut = (text, letters) => text.length > letters ? text.slice(0, letters - 1) + '…' : text;

/** The drawing of nodes `{ stage, operator, reads }`; `href` says where a node leads. `set(states)` changes what they say. */
export function drawing(nodes, href) {
  const index = new Map(nodes.map((node, place) => [node.stage, place]));
  const reads = nodes.map(node => node.reads.map(read => index.get(read)).filter(read => read !== undefined));
  const { x, y, width, height } = places(nodes, reads);
  const edges = nodes.flatMap((node, to) => reads[to].map(from => {
    const [ax, ay, bx, by] = [x[from] + WIDTH / 2, y[from] + HEIGHT, x[to] + WIDTH / 2, y[to]];
    const bend = Math.max(DOWN * 0.6, (by - ay) * 0.4);
    return s('path', { class: 'edge', d: `M${ax} ${ay}C${ax} ${ay + bend} ${bx} ${by - bend} ${bx} ${by}` });
  }));
  const drawn = nodes.map((node, place) => {
    const parts = {
      title: s('title', {}, node.stage),
      line: s('text', { class: 'small', x: WIDTH / 2, y: 39 }, cut(node.operator || '', 28)),
      bar: s('rect', { class: 'bar', x: 1, y: HEIGHT - 5, height: 4, width: 0, rx: 2 }),
    };
    parts.node = s('a', { href: href(node), class: 'node idle', 'data-stage': node.stage, 'aria-label': node.stage, transform: `translate(${x[place]} ${y[place]})` },
      parts.title, s('rect', { class: 'box', width: WIDTH, height: HEIGHT, rx: 7 }), parts.bar,
      s('text', { class: 'name', x: WIDTH / 2, y: 21 }, cut(node.stage, 22)), parts.line);
    return parts;
  });
  const picture = s('svg', { viewBox: `0 0 ${width} ${height}`, width, height, role: 'group', 'aria-label': 'graph of stages' },
    edges, drawn.map(parts => parts.node));
  const change = (node, text) => { if (node.textContent !== text) node.textContent = text; };
  return {
    picture,
    set(states) {
      for (const [stage, { tone, line, title, fraction }] of states) {
        const parts = drawn[index.get(stage)];
        if (!parts) continue;
        const name = `node ${tone}`;
        if (parts.node.getAttribute('class') !== name) parts.node.setAttribute('class', name);
        parts.node.setAttribute('aria-label', `${stage}: ${line}`);
        change(parts.line, cut(line, 28));
        change(parts.title, title);
        parts.bar.setAttribute('width', fraction ? Math.max(0, (WIDTH - 2) * Math.min(1, fraction)) : 0);
      }
    },
  };
}
