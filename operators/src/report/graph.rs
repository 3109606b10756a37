//! Stages and what they read: as a drawing, and for Mermaid.

use serde::{Deserialize, Serialize};

use super::html::escape;
use super::svg::cut;

/// Width and height of a node, and the room between nodes.
const WIDTH: usize = 168;
const HEIGHT: usize = 46;
const ACROSS: usize = 20;
const DOWN: usize = 44;
/// Letters that fit into a node.
const LETTERS: usize = 22;

/// Nodes with edges between them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Graph {
    /// What it shows.
    pub caption: String,
    /// Its nodes.
    pub nodes: Vec<Node>,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// What it is called.
    pub name: String,
    /// Words below that; a drawing shows the first of them.
    pub lines: Vec<String>,
    /// What more there is to say, line by line.
    pub title: String,
    /// What became or becomes of it, by a class of [`CLASSES`].
    pub class: String,
    /// Nodes that it reads, by index.
    pub reads: Vec<usize>,
}

/// Classes with their colours: light back and edge and text, dark back.
pub const CLASSES: [(&str, &str, &str, &str, &str); 6] = [
    ("reuse", "#e3f1e4", "#3f8f4a", "#14351a", "#1d3a22"),
    ("run", "#fbe0c3", "#c8690a", "#4a2503", "#4d2c0c"),
    ("perhaps", "#fdf3c4", "#b39200", "#453900", "#453b0a"),
    ("keep", "#dde8fa", "#3a6fc4", "#12294f", "#1b2f52"),
    ("skip", "#ececec", "#8a8a8a", "#333333", "#2b2b2e"),
    ("failed", "#f9d3d0", "#b3261e", "#410e0b", "#5c1a16"),
];

/// The colours of the classes as rules of CSS, for both themes.
pub fn style() -> String {
    let light = |(class, back, edge, _, _): &(&str, &str, &str, &str, &str)| {
        format!(".{class} {{ --fill: {back}; --edge: {edge}; }}\n")
    };
    let dark = |(class, _, _, _, back): &(&str, &str, &str, &str, &str)| format!("  .{class} {{ --fill: {back}; }}\n");
    format!(
        "{}@media (prefers-color-scheme: dark) {{\n{}}}\n\
        .graph svg {{ display: block; margin: 0 auto; }}\n\
        .graph rect {{ fill: var(--fill); stroke: var(--edge); stroke-width: 1.2; }}\n\
        .graph text {{ fill: var(--ink); text-anchor: middle; font-size: 13px; }}\n\
        .graph .small {{ fill: var(--soft); font-size: 11px; }}\n\
        .graph .edge {{ fill: none; stroke: var(--soft); stroke-width: 1.1; opacity: .7; }}\n",
        CLASSES.iter().map(light).collect::<String>(),
        CLASSES.iter().map(dark).collect::<String>()
    )
}

impl Graph {
    /// How many edges are above each node at most.
    pub fn layers(&self) -> Vec<usize> {
        let mut layers = vec![0; self.nodes.len()];
        // Nodes may not come in order; as many rounds as there are nodes settle every graph without circles.
        for _ in 0..self.nodes.len() {
            let before = layers.clone();
            for (place, node) in self.nodes.iter().enumerate() {
                let above = node.reads.iter().map(|read| layers[*read] + 1).max().unwrap_or(0);
                layers[place] = above.min(self.nodes.len());
            }
            if layers == before {
                break;
            }
        }
        layers
    }

    /// Layers from top to bottom; within a layer, nodes stand below what they read as far as that goes.
    pub fn svg(&self) -> String {
        let of_node = self.layers();
        let mut layers: Vec<Vec<usize>> = vec![Vec::new(); of_node.iter().map(|layer| layer + 1).max().unwrap_or(0)];
        for (index, layer) in of_node.iter().enumerate() {
            layers[*layer].push(index);
        }
        let widest = layers.iter().map(Vec::len).max().unwrap_or(0);
        let whole = widest * (WIDTH + ACROSS) + ACROSS;
        let mut middle = vec![0.0f64; self.nodes.len()];
        for layer in &mut layers {
            // The mean of what a node reads, then its place in the graph.
            let wish = |index: &usize| {
                let reads = &self.nodes[*index].reads;
                let sum: f64 = reads.iter().map(|read| middle[*read]).sum();
                sum / reads.len().max(1) as f64
            };
            layer.sort_by(|a, b| wish(a).total_cmp(&wish(b)).then(a.cmp(b)));
            let left = (whole - layer.len() * (WIDTH + ACROSS) + ACROSS) / 2;
            for (place, index) in layer.iter().enumerate() {
                middle[*index] = (left + place * (WIDTH + ACROSS) + WIDTH / 2) as f64;
            }
        }
        let top = |index: usize| (ACROSS + of_node[index] * (HEIGHT + DOWN)) as f64;
        let height = layers.len() * (HEIGHT + DOWN) + ACROSS;
        let mut text = format!(
            "<svg viewBox=\"0 0 {whole} {height}\" width=\"{whole}\" height=\"{height}\" role=\"img\" aria-label=\"graph of stages\">\n"
        );
        for (index, node) in self.nodes.iter().enumerate() {
            for read in &node.reads {
                let (x, y) = (middle[*read], top(*read) + HEIGHT as f64);
                let (to, below) = (middle[index], top(index));
                let bend = DOWN as f64 * 0.6;
                text.push_str(&format!(
                    "<path class=\"edge\" d=\"M{x:.0} {y:.0} C{x:.0} {:.0} {to:.0} {:.0} {to:.0} {below:.0}\"/>\n",
                    y + bend,
                    below - bend
                ));
            }
        }
        for (index, node) in self.nodes.iter().enumerate() {
            let (x, y) = (middle[index] - WIDTH as f64 / 2.0, top(index));
            text.push_str(&format!(
                "<g class=\"{}\" transform=\"translate({x:.0} {y:.0})\"><title>{}</title>\
                <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"7\"/><text x=\"{}\" y=\"19\">{}</text>\
                <text class=\"small\" x=\"{}\" y=\"35\">{}</text></g>\n",
                escape(&node.class),
                escape(&node.title),
                WIDTH / 2,
                escape(&cut(&node.name, LETTERS)),
                WIDTH / 2,
                escape(&cut(node.lines.first().map_or("", String::as_str), LETTERS + 4))
            ));
        }
        text.push_str("</svg>\n");
        text
    }

    /// A flowchart for Mermaid, which reads its labels as HTML.
    pub fn mermaid(&self) -> String {
        let mut text = "flowchart TD\n".to_string();
        for (index, node) in self.nodes.iter().enumerate() {
            text.push_str(&format!("  s{index}[\"{}", label(&node.name)));
            node.lines
                .iter()
                .for_each(|line| text.push_str(&format!("<br/>{}", label(line))));
            text.push_str(&format!("\"]:::{}\n", escape(&node.class)));
        }
        for (index, node) in self.nodes.iter().enumerate() {
            for read in &node.reads {
                text.push_str(&format!("  s{read} --> s{index}\n"));
            }
        }
        for (class, back, edge, ink, _) in CLASSES {
            text.push_str(&format!("  classDef {class} fill:{back},stroke:{edge},color:{ink}\n"));
        }
        text
    }
}

/// A label of a flowchart: in one line, and without what ends a block of code or begins a link where it stands in one.
fn label(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let escaped = escape(&line).replace('`', "&#96;");
    escaped.replace('[', "&#91;").replace(']', "&#93;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_follow_the_edges() {
        let node = |name: &str, reads: &[usize]| Node {
            name: name.into(),
            class: "run".into(),
            reads: reads.to_vec(),
            ..Node::default()
        };
        let graph = Graph {
            caption: String::new(),
            nodes: vec![node("c", &[1, 2]), node("a", &[]), node("b\"<i>", &[1])],
        };
        assert_eq!(graph.layers(), [2, 0, 1]);
        let svg = graph.svg();
        assert_eq!(
            (svg.matches("<rect").count(), svg.matches("class=\"edge\"").count()),
            (3, 3)
        );
        assert!(svg.contains("b&quot;&lt;i&gt;") && !svg.contains("<i>"), "{svg}");
        assert!(graph.mermaid().contains("s1 --> s2\n") && !graph.mermaid().contains("<i>"));
    }

    #[test]
    fn a_circle_ends() {
        let node = |reads: &[usize]| Node {
            reads: reads.to_vec(),
            ..Node::default()
        };
        let graph = Graph {
            caption: String::new(),
            nodes: vec![node(&[1]), node(&[0])],
        };
        assert!(graph.layers().iter().all(|layer| *layer <= 2));
    }
}
