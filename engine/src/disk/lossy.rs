//! A file system in memory that loses power: content that was not synced, and names in folders that were not synced, may
//! be there afterwards or not, each on its own.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use super::Disk;
use crate::random::{Random, Stream};

/// A file or folder, apart from its name.
#[derive(Clone, Debug)]
enum Inode {
    File {
        /// What a reader sees now.
        content: Vec<u8>,
        /// What is on disk for sure.
        synced: Vec<u8>,
    },
    Folder {
        /// Names now.
        names: BTreeMap<String, usize>,
        /// Names on disk for sure.
        synced: BTreeMap<String, usize>,
    },
}

#[derive(Clone, Debug)]
struct State {
    inodes: Vec<Inode>,
    steps: u64,
    /// Power is lost before this step.
    until: u64,
}

/// The file system.
pub(crate) struct Lossy(Mutex<State>);

const ROOT: usize = 0;

impl Lossy {
    /// An empty one, which loses power before step `until`.
    pub(crate) fn new(until: u64) -> Self {
        Lossy(Mutex::new(State {
            inodes: vec![Inode::folder()],
            steps: 0,
            until,
        }))
    }

    /// Steps so far.
    pub(crate) fn steps(&self) -> u64 {
        self.state().steps
    }

    /// What is there when power is back. Everything not synced is a toss of a coin.
    pub(crate) fn after_power_loss(&self, seed: u64) -> Lossy {
        let mut state = self.state().clone();
        let mut coins = Random::new(seed, "disk", "power").row(0);
        for inode in &mut state.inodes {
            match inode {
                Inode::File { content, synced } => {
                    if content != synced {
                        *content = torn(content, synced, &mut coins);
                    }
                    *synced = content.clone();
                }
                Inode::Folder { names, synced } => {
                    let all: Vec<String> = names.keys().chain(synced.keys()).cloned().collect();
                    for name in all {
                        let (now, before) = (names.get(&name).copied(), synced.get(&name).copied());
                        if now != before && coins.below(2) == 0 {
                            match before {
                                Some(inode) => names.insert(name, inode),
                                None => names.remove(&name),
                            };
                        }
                    }
                    *synced = names.clone();
                }
            }
        }
        state.until = u64::MAX;
        Lossy(Mutex::new(state))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn step(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        state.steps += 1;
        match state.steps >= state.until {
            true => Err(io::Error::other("no power")),
            false => Ok(state),
        }
    }
}

/// The new content, the old one, or a beginning of the new one.
fn torn(content: &[u8], synced: &[u8], coins: &mut Stream) -> Vec<u8> {
    match coins.below(3) {
        0 => content.to_vec(),
        1 => synced.to_vec(),
        _ => content[..coins.below(content.len() as u64 + 1) as usize].to_vec(),
    }
}

impl Inode {
    fn folder() -> Inode {
        Inode::Folder {
            names: BTreeMap::new(),
            synced: BTreeMap::new(),
        }
    }
}

fn missing() -> io::Error {
    io::Error::from(io::ErrorKind::NotFound)
}

impl State {
    fn names(&mut self, folder: usize) -> io::Result<&mut BTreeMap<String, usize>> {
        match &mut self.inodes[folder] {
            Inode::Folder { names, .. } => Ok(names),
            Inode::File { .. } => Err(io::Error::from(io::ErrorKind::NotADirectory)),
        }
    }

    fn find(&mut self, path: &Path) -> io::Result<usize> {
        let mut at = ROOT;
        for part in parts(path) {
            at = *self.names(at)?.get(&part).ok_or_else(missing)?;
        }
        Ok(at)
    }

    fn place(&mut self, path: &Path) -> io::Result<(usize, String)> {
        let mut parts = parts(path);
        let name = parts.pop().ok_or_else(missing)?;
        let folder = self.find(&parts.iter().collect::<PathBuf>())?;
        Ok((folder, name))
    }

    fn file(&mut self, path: &Path) -> io::Result<&mut Vec<u8>> {
        let inode = self.find(path)?;
        match &mut self.inodes[inode] {
            Inode::File { content, .. } => Ok(content),
            Inode::Folder { .. } => Err(io::Error::from(io::ErrorKind::IsADirectory)),
        }
    }

    fn make(&mut self, path: &Path, inode: Inode) -> io::Result<()> {
        let (folder, name) = self.place(path)?;
        self.inodes.push(inode);
        let new = self.inodes.len() - 1;
        self.names(folder)?.insert(name, new);
        Ok(())
    }
}

fn parts(path: &Path) -> Vec<String> {
    path.components()
        .filter_map(|part| match part {
            std::path::Component::Normal(name) => Some(name.to_string_lossy().to_string()),
            _ => None,
        })
        .collect()
}

impl Disk for Lossy {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.state().file(path).cloned()
    }
    fn length(&self, path: &Path) -> io::Result<u64> {
        self.state().file(path).map(|content| content.len() as u64)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut state = self.state();
        let folder = state.find(path)?;
        Ok(state.names(folder)?.keys().cloned().collect())
    }
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        let mut state = self.step()?;
        let mut sofar = PathBuf::new();
        for part in parts(path) {
            sofar.push(part);
            if state.find(&sofar).is_err() {
                state.make(&sofar, Inode::folder())?;
            }
        }
        Ok(())
    }
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.step()?;
        if let Ok(content) = state.file(path) {
            *content = bytes.to_vec();
            return Ok(());
        }
        let file = Inode::File {
            content: bytes.to_vec(),
            synced: Vec::new(),
        };
        state.make(path, file)
    }
    fn overwrite(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        *self.step()?.file(path)? = bytes.to_vec();
        Ok(())
    }
    fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let content = self.read(path).unwrap_or_default();
        self.write(path, &[content, bytes.to_vec()].concat())
    }
    fn sync(&self, path: &Path) -> io::Result<()> {
        let mut state = self.step()?;
        let inode = state.find(path)?;
        match &mut state.inodes[inode] {
            Inode::File { content, synced } => *synced = content.clone(),
            Inode::Folder { names, synced } => *synced = names.clone(),
        }
        Ok(())
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.step()?;
        let inode = state.find(from)?;
        let target = state.place(to)?;
        if let Ok(taken) = state.find(to)
            && let Inode::Folder { names, .. } = &state.inodes[taken]
            && !names.is_empty()
        {
            return Err(io::Error::from(io::ErrorKind::DirectoryNotEmpty));
        }
        let source = state.place(from)?;
        state.names(source.0)?.remove(&source.1);
        state.names(target.0)?.insert(target.1, inode);
        Ok(())
    }
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.step()?;
        let inode = state.find(from)?;
        if state.find(to).is_ok() {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        let (folder, name) = state.place(to)?;
        state.names(folder)?.insert(name, inode);
        Ok(())
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.step()?;
        state.file(path)?;
        let (folder, name) = state.place(path)?;
        state.names(folder)?.remove(&name);
        Ok(())
    }
    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        let mut state = self.step()?;
        state.find(path)?;
        let (folder, name) = state.place(path)?;
        state.names(folder)?.remove(&name);
        Ok(())
    }
}
