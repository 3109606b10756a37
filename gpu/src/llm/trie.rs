//! The token trie of a catalogue's titles, in flat arrays.

use crate::error::{Error, Result};
use std::ops::Range;

/// All titles of a catalogue, each a list of tokens that ends with the end of text. Titles are numbered in the order of
/// their tokens. Nodes are numbered by depth and then by prefix, so that the children of a node lie side by side, by
/// ascending token; node 0 is the empty prefix, a node without children is a whole title.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TitleTrie {
    /// The last token of each node; that of the root says nothing.
    tokens: Vec<u32>,
    /// Where each node's children start, and one more.
    children: Vec<u32>,
    /// The titles below each node.
    titles: Vec<Range<u32>>,
    /// Where the tokens of each title start, and one more.
    starts: Vec<u32>,
    /// Tokens of all titles.
    texts: Vec<u32>,
    /// Where the items of each title start, and one more.
    item_starts: Vec<u32>,
    /// Items by title, ascending within one.
    items: Vec<u32>,
}

impl TitleTrie {
    /// The trie of the titles of items 0, 1, ...; items may share one.
    ///
    /// # Errors
    /// [`Error::InvalidData`] without any title, for an empty one, and for one that does not end with the token that
    /// ends the others or has it before its end.
    pub fn new<T: AsRef<[u32]>>(titles: &[T]) -> Result<Self> {
        let eos = check(titles)?;
        let of = |item: u32| titles[item as usize].as_ref();
        let mut items: Vec<u32> = (0..titles.len() as u32).collect();
        items.sort_unstable_by(|a, b| of(*a).cmp(of(*b)).then(a.cmp(b)));
        let (mut starts, mut texts, mut item_starts) = (vec![0], Vec::new(), Vec::new());
        for (rank, item) in items.iter().enumerate() {
            if rank == 0 || of(items[rank - 1]) != of(*item) {
                item_starts.push(rank as u32);
                texts.extend_from_slice(of(*item));
                starts.push(texts.len() as u32);
            }
        }
        item_starts.push(items.len() as u32);
        let mut trie = TitleTrie {
            tokens: vec![eos],
            children: Vec::new(),
            titles: std::iter::once(0..starts.len() as u32 - 1).collect(),
            starts,
            texts,
            item_starts,
            items,
        };
        trie.grow();
        Ok(trie)
    }

    /// Makes the nodes, from the shortest prefixes on.
    fn grow(&mut self) {
        let (mut node, mut depth, mut deeper) = (0, 0, 1);
        while node < self.tokens.len() {
            if node == deeper {
                (depth, deeper) = (depth + 1, self.tokens.len());
            }
            self.children.push(self.tokens.len() as u32);
            let below = self.titles[node].clone();
            let mut first = below.start;
            while first < below.end && depth < self.text(first).len() {
                let token = self.text(first)[depth];
                let shared = (first..below.end).take_while(|title| self.text(*title)[depth] == token);
                let end = first + shared.count() as u32;
                self.tokens.push(token);
                self.titles.push(first..end);
                first = end;
            }
            node += 1;
        }
        self.children.push(self.tokens.len() as u32);
    }

    /// Number of distinct titles.
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Never: there is no trie without a title.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of items.
    pub fn items(&self) -> usize {
        self.items.len()
    }

    /// Number of prefixes, the empty one included.
    pub fn nodes(&self) -> usize {
        self.tokens.len()
    }

    /// The children of a node.
    pub fn children(&self, node: u32) -> Range<u32> {
        self.children[node as usize]..self.children[node as usize + 1]
    }

    /// The last token of a node below the root.
    pub fn token(&self, node: u32) -> u32 {
        self.tokens[node as usize]
    }

    /// The last tokens of nodes that lie side by side.
    pub fn tokens(&self, nodes: Range<u32>) -> &[u32] {
        &self.tokens[nodes.start as usize..nodes.end as usize]
    }

    /// The title that a node is, if it is a whole one.
    pub fn title(&self, node: u32) -> Option<u32> {
        self.children(node).is_empty().then(|| self.titles[node as usize].start)
    }

    /// The titles that begin with a node's tokens.
    pub fn below(&self, node: u32) -> Range<u32> {
        self.titles[node as usize].clone()
    }

    /// The tokens of a title, the end of text included.
    pub fn text(&self, title: u32) -> &[u32] {
        &self.texts[self.starts[title as usize] as usize..self.starts[title as usize + 1] as usize]
    }

    /// The items that share a title, ascending.
    pub fn items_of(&self, title: u32) -> &[u32] {
        let range = self.item_starts[title as usize]..self.item_starts[title as usize + 1];
        &self.items[range.start as usize..range.end as usize]
    }

    /// The title with these tokens, if there is one.
    pub fn find(&self, tokens: &[u32]) -> Option<u32> {
        let mut node = 0;
        for token in tokens {
            let children = self.children(node);
            let at = self.tokens(children.clone()).binary_search(token).ok()?;
            node = children.start + at as u32;
        }
        self.title(node)
    }

    /// Tokens of the longest title.
    pub fn longest(&self) -> usize {
        self.starts
            .windows(2)
            .map(|span| (span[1] - span[0]) as usize)
            .max()
            .unwrap_or(0)
    }

    /// The largest token, to check against a vocabulary.
    pub fn largest_token(&self) -> u32 {
        self.texts.iter().copied().max().unwrap_or(0)
    }
}

/// The token that ends all titles.
fn check<T: AsRef<[u32]>>(titles: &[T]) -> Result<u32> {
    let Some(first) = titles.first() else {
        return Err(Error::InvalidData("the catalogue has no titles".into()));
    };
    let total: usize = titles.iter().map(|title| title.as_ref().len()).sum();
    if u32::try_from(total).is_err() {
        return Err(Error::InvalidData("the titles have more than 2^32 tokens".into()));
    }
    let refuse = |item: usize, what: String| Err(Error::InvalidData(format!("the title of item {item} {what}")));
    let Some(&eos) = first.as_ref().last() else {
        return refuse(0, "has no tokens".into());
    };
    for (item, title) in titles.iter().enumerate() {
        match title.as_ref().split_last() {
            None => return refuse(item, "has no tokens".into()),
            Some((&last, _)) if last != eos => {
                return refuse(item, format!("ends with token {last}, that of item 0 with {eos}"));
            }
            Some((_, [])) => return refuse(item, "is nothing but the end of text".into()),
            Some((_, tokens)) if tokens.contains(&eos) => {
                return refuse(item, format!("has the end of text, {eos}, before its end"));
            }
            Some(_) => {}
        }
    }
    Ok(eos)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Key;

    #[test]
    fn small() {
        let trie = TitleTrie::new(&[vec![5, 2, 9], vec![3, 9], vec![5, 9], vec![3, 9]]).unwrap();
        assert_eq!((trie.len(), trie.items(), trie.nodes(), trie.longest()), (3, 4, 7, 3));
        assert_eq!(trie.tokens(trie.children(0)), [3, 5]);
        assert_eq!(trie.tokens(trie.children(2)), [2, 9]);
        assert_eq!((trie.below(2), trie.title(2), trie.title(5)), (1..3, None, Some(2)));
        assert_eq!((trie.items_of(0), trie.items_of(1)), (&[1, 3][..], &[0][..]));
        assert_eq!(
            (trie.find(&[5, 9]), trie.find(&[5]), trie.find(&[4, 9])),
            (Some(2), None, None)
        );
        assert_eq!(trie.largest_token(), 9);
    }

    /// All paths from the root to a title.
    fn walk(trie: &TitleTrie, node: u32, path: &mut Vec<u32>, found: &mut Vec<(Vec<u32>, u32)>) {
        if let Some(title) = trie.title(node) {
            found.push((path.clone(), title));
        }
        for child in trie.children(node) {
            path.push(trie.token(child));
            walk(trie, child, path, found);
            path.pop();
        }
    }

    #[test]
    fn exactly_the_titles_come_out() {
        for (seed, count, vocabulary) in [(1, 1, 3), (2, 7, 2), (3, 40, 3), (4, 300, 5), (5, 300, 1000)] {
            let key = Key::new(seed);
            let length = |item: u64| 1 + key.child(1).below(item, 6);
            let token = |item: u64, at: u64| 1 + key.child(2 + item).below(at, vocabulary) as u32;
            let title = |item: u64| -> Vec<u32> { (0..length(item)).map(|at| token(item, at)).chain([0]).collect() };
            let titles: Vec<Vec<u32>> = (0..count).map(title).collect();
            let trie = TitleTrie::new(&titles).unwrap();
            let mut found = Vec::new();
            walk(&trie, 0, &mut Vec::new(), &mut found);
            let mut distinct = titles.clone();
            distinct.sort();
            distinct.dedup();
            let mut paths: Vec<Vec<u32>> = found.iter().map(|(path, _)| path.clone()).collect();
            paths.sort();
            assert_eq!(paths, distinct);
            let mut items = 0;
            for (path, title) in found {
                assert_eq!((trie.text(title), trie.find(&path)), (&path[..], Some(title)));
                assert_eq!(distinct[title as usize], path);
                assert!(trie.items_of(title).iter().all(|item| titles[*item as usize] == path));
                items += trie.items_of(title).len();
            }
            assert_eq!(items, titles.len());
            for node in 0..trie.nodes() as u32 {
                let below = trie.children(node).map(|child| trie.below(child));
                let below: Vec<u32> = below.flatten().collect();
                assert!(below.is_empty() || below == trie.below(node).collect::<Vec<_>>());
                assert!(trie.tokens(trie.children(node)).is_sorted_by(|a, b| a < b));
            }
        }
    }

    #[test]
    fn titles_that_are_none_are_refused() {
        let refused = |titles: &[Vec<u32>]| TitleTrie::new(titles).unwrap_err().to_string();
        assert_eq!(refused(&[]), "invalid data: the catalogue has no titles");
        assert!(refused(&[vec![1, 0], vec![]]).ends_with("item 1 has no tokens"));
        assert!(refused(&[vec![1, 0], vec![1, 2]]).ends_with("item 1 ends with token 2, that of item 0 with 0"));
        assert!(refused(&[vec![1, 0], vec![0]]).ends_with("item 1 is nothing but the end of text"));
        assert!(refused(&[vec![1, 0, 1, 0]]).ends_with("item 0 has the end of text, 0, before its end"));
    }
}
