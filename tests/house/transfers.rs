//! Push and pull as a library: large files, many at once, and what the engine asks of a remote store.

use std::path::Path;

use serde_json::json;
use sluice_engine::key::Preimage;
use sluice_engine::store::{KeyRecord, Manifest, Remote, Store};
use sluice_remote::{Options, RemoteStore};
use tempfile::TempDir;

use crate::s3::S3Server;
use crate::sluice::{entries, files};

fn store() -> (TempDir, Store) {
    let folder = TempDir::new().unwrap();
    let store = Store::open(folder.path()).unwrap();
    (folder, store)
}

/// Publishes files as the result of a stage called by a name.
fn publish(store: &Store, name: &str, content: &[(&str, &[u8])]) -> KeyRecord {
    let attempt = Store::attempt_name(name);
    let folder = store.attempt_folder(&attempt).join("out");
    for (file, bytes) in content {
        let path = folder.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    let preimage = json!({
        "format": 1, "operator": "made", "version": 1, "config": {"name": name}, "seed": null, "files": {}, "inputs": {},
    });
    let preimage: Preimage = serde_json::from_value(preimage).unwrap();
    let manifest = json!({
        "digest": "", "layout": "files", "schema": [], "rows": 0, "files": store.folder_entries(&folder).unwrap(),
        "port": "out", "preimage": preimage, "stage": name, "run": "r", "seconds": 1.0, "notes": {}, "software": "0",
    });
    let manifest: Manifest = serde_json::from_value(manifest).unwrap();
    let digest = store.publish(&folder, manifest).unwrap();
    let record = json!({
        "key": preimage.key(), "preimage": preimage, "outputs": {"out": digest}, "rows": {"out": 0}, "bytes": 0,
        "seconds": 1.0, "busy_seconds": 1.0, "notes": {}, "run": "r",
    });
    let record: KeyRecord = serde_json::from_value(record).unwrap();
    store.publish_record(&record, &attempt, false).unwrap();
    store.discard(&attempt);
    record
}

fn open(server: &S3Server) -> RemoteStore {
    let options = Options {
        variables: server.variables(),
        create: false,
    };
    RemoteStore::open(&server.url(), &options).unwrap()
}

fn memory() -> RemoteStore {
    RemoteStore::open("memory://", &Options::default()).unwrap()
}

/// Bytes that do not repeat.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 7u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

/// Larger than a part, larger than a range, not a multiple of either; nothing at all; in folders; odd names.
#[test]
fn files_of_any_size_and_name_arrive() {
    let (_from, here) = store();
    let (large, larger) = (noise((16 << 20) + 7), noise((40 << 20) + 1));
    let content: [(&str, &[u8]); 5] = [
        ("model.safetensors", &large),
        ("deep/er/larger", &larger),
        ("empty", b""),
        ("a name with blanks & 100 %", b"odd"),
        ("größe #1", b"odder"),
    ];
    let record = publish(&here, "large", &content);
    let server = S3Server::start();
    let folder = TempDir::new().unwrap();
    let options = Options::default();
    for remote in [
        open(&server),
        memory(),
        RemoteStore::open(folder.path().to_str().unwrap(), &options).unwrap(),
    ] {
        let mut steps = Vec::new();
        let keys = [record.key.clone()];
        let pushed = remote.push(&here, &keys, &mut |now| steps.push(*now)).unwrap();
        assert_eq!((pushed.keys, pushed.files), (1, 5), "{}", remote.name());
        assert_eq!(pushed.bytes, (56 << 20) + 16);
        assert_eq!(steps.last().unwrap().done, 1);

        let (_to, there) = store();
        let pulled = remote.pull(&there, &keys, &mut |_| {}).unwrap();
        assert_eq!((pulled.keys, pulled.files), (1, 5), "{}", remote.name());
        let object = there.object(&record.outputs["out"]);
        for (name, bytes) in content {
            assert!(
                std::fs::read(object.join(name)).unwrap() == bytes,
                "{name} from {}",
                remote.name()
            );
        }
        assert!(there.record(&record.key).is_some() && there.has_static(&record.preimage));
    }
}

/// Whoever is first puts the record; the others see that it is there, or that it says something else.
#[test]
fn many_push_at_once() {
    let server = S3Server::start();
    let stores: Vec<(TempDir, Store)> = (0..4).map(|_| store()).collect();
    let names = ["a", "b", "c", "d", "e", "f"];
    let mut keys = Vec::new();
    for (number, (_, store)) in stores.iter().enumerate() {
        let same = names.map(|name| publish(store, name, &[("same", name.as_bytes())]).key);
        let other = publish(store, "other", &[("differs", &[number as u8])]).key;
        keys = [&same[..], &[other]].concat();
    }
    let pushed: Vec<_> = std::thread::scope(|scope| {
        let push = |store| {
            let (remote, keys) = (open(&server), &keys);
            scope.spawn(move || remote.push(store, keys, &mut |_| {}).unwrap())
        };
        let threads: Vec<_> = stores.iter().map(|(_, store)| push(store)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let sum = |count: &dyn Fn(&sluice_remote::Pushed) -> usize| pushed.iter().map(count).sum::<usize>();
    assert_eq!(sum(&|pushed| pushed.keys), 7, "{pushed:?}");
    assert_eq!(sum(&|pushed| pushed.there), 18, "{pushed:?}");
    assert_eq!(sum(&|pushed| pushed.kept.len()), 3, "{pushed:?}");

    let (_to, there) = store();
    let pulled = open(&server).pull(&there, &keys, &mut |_| {}).unwrap();
    assert_eq!(pulled.keys, 7);
    let winner = pushed.iter().position(|pushed| pushed.kept.is_empty()).unwrap();
    let other = there.record(&keys[6]).unwrap();
    assert_eq!(other.outputs, stores[winner].1.record(&keys[6]).unwrap().outputs);
}

#[test]
fn the_engine_can_ask() {
    let (_from, here) = store();
    let record = publish(&here, "asked", &[("one", b"1"), ("sub/two", b"22")]);
    let digest = &record.outputs["out"];
    let remote = memory();
    let folder = TempDir::new().unwrap();
    assert!(remote.record(&record.key).unwrap().is_none());
    assert!(!remote.has_static(&record.preimage).unwrap());
    assert_eq!(remote.fetch(digest, folder.path()).unwrap_err().code, "damaged-remote");

    let keys = [record.key.clone(), "unheard-of".to_string()];
    assert_eq!(remote.push(&here, &keys, &mut |_| {}).unwrap().absent, ["unheard-of"]);
    assert_eq!(remote.keys().unwrap(), keys[..1]);
    assert_eq!(remote.record(&record.key).unwrap().unwrap().outputs, record.outputs);
    assert!(remote.has_static(&record.preimage).unwrap());
    let manifest = remote.fetch(digest, folder.path()).unwrap();
    assert_eq!(&manifest.digest, digest);
    assert_eq!(files(folder.path()).len(), 3);
    // What was fetched can be published as it is.
    let (_to, there) = store();
    let attempt = there.attempt_folder("a");
    std::fs::create_dir(&attempt).unwrap();
    remote.fetch(digest, &attempt).unwrap();
    assert_eq!(&there.publish(&attempt, manifest).unwrap(), digest);

    let (_to, there) = store();
    let pulled = remote.pull(&there, &keys, &mut |_| {}).unwrap();
    assert_eq!((pulled.keys, pulled.absent), (1, vec!["unheard-of".to_string()]));
}

/// A push spreads no damage.
#[test]
fn what_is_damaged_here_is_not_pushed() {
    let (_from, here) = store();
    let large = noise((9 << 20) + 1);
    for (name, bytes) in [("small", &b"few"[..]), ("large", &large)] {
        let record = publish(&here, name, &[("file", bytes)]);
        let path = here.object(&record.outputs["out"]).join("file");
        let mut changed = bytes.to_vec();
        *changed.last_mut().unwrap() ^= 1;
        std::fs::write(&path, changed).unwrap();
        let folder = TempDir::new().unwrap();
        let remote = RemoteStore::open(folder.path().to_str().unwrap(), &Options::default()).unwrap();
        let error = remote.push(&here, &[record.key], &mut |_| {}).unwrap_err();
        assert_eq!(error.code, "damaged-artifact");
        assert!(error.message.contains(&*path.to_string_lossy()), "{error}");
        assert!(
            is_empty(&folder.path().join("objects")) && is_empty(&folder.path().join("keys")),
            "{name}"
        );
    }
}

fn is_empty(folder: &Path) -> bool {
    entries(folder).iter().all(|path| files(path).is_empty())
}

/// A store lies as a remote one does, so a store of somebody else can be pulled from.
#[test]
fn a_store_is_a_remote_store() {
    let (from, here) = store();
    let record = publish(&here, "mine", &[("file", b"bytes")]);
    let remote = RemoteStore::open(from.path().to_str().unwrap(), &Options::default()).unwrap();
    let (_to, there) = store();
    assert_eq!(
        remote.pull(&there, &remote.keys().unwrap(), &mut |_| {}).unwrap().keys,
        1
    );
    assert!(there.record(&record.key).is_some());
}
