//! A look at the whole store: is every artifact what its digest says, every key what was hashed, and nothing missing?

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::error::Result;
use crate::store::{KeyRecord, Manifest, Store};

/// What a look at the store found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Inspection {
    /// Artifacts.
    pub objects: usize,
    /// Bytes of all artifacts, as their manifests say.
    pub bytes: u64,
    /// Keys.
    pub keys: usize,
    /// Artifacts that are not what their digests say, with what is wrong.
    pub damaged: Vec<Damage>,
    /// Keys whose record cannot be read or is that of another key, with what is wrong.
    pub bad_keys: Vec<Damage>,
    /// Artifacts that no key has.
    pub without_key: Vec<String>,
    /// Keys whose artifacts are gone: their stages run again when they are wanted.
    pub without_objects: Vec<String>,
    /// Damaged artifacts and keys that were moved out of the store.
    pub moved: usize,
}

/// Something that is damaged.
#[derive(Clone, Debug, Serialize)]
pub struct Damage {
    /// The digest or key.
    pub name: String,
    /// The stage, as far as that can be told.
    pub stage: Option<String>,
    /// What is wrong with it.
    pub what: String,
}

/// Looks at everything. With `quarantine`, what is damaged is moved away, so that what made it runs again.
pub fn inspect(store: &Store, quarantine: bool, mut told: impl FnMut(usize, usize)) -> Result<Inspection> {
    let mut found = Inspection::default();
    let (digests, keys) = (store.objects(), store.keys());
    let mut records: BTreeMap<String, KeyRecord> = BTreeMap::new();
    found.keys = keys.len();
    for key in keys {
        let path = store.root().join("keys").join(format!("{key}.json"));
        let what = match store.json::<KeyRecord>(&path) {
            Err(error) => error.message,
            Ok(record) if record.key != key => format!("it is the record of key {}", record.key),
            Ok(record) if record.preimage.key() != key => "its pre-image has another key".to_string(),
            Ok(record) => {
                records.insert(key, record);
                continue;
            }
        };
        if quarantine {
            // A key that is not known is made anew.
            let removed = store.disk().remove(&path);
            removed.map_err(|error| crate::Error::io("remove", &path, &error))?;
            found.moved += 1;
        }
        found.bad_keys.push(Damage {
            name: key,
            stage: None,
            what,
        });
    }
    let used: BTreeSet<&String> = records.values().flat_map(|record| record.outputs.values()).collect();
    found.objects = digests.len();
    for (place, digest) in digests.iter().enumerate() {
        told(place, digests.len());
        let manifest = store.json::<Manifest>(&store.object(digest).join("manifest.json")).ok();
        found.bytes += manifest
            .iter()
            .flat_map(|manifest| &manifest.files)
            .map(|file| file.bytes)
            .sum::<u64>();
        if let Err(error) = store.verify(digest) {
            if quarantine {
                store.quarantine(digest)?;
                found.moved += 1;
            }
            found.damaged.push(Damage {
                name: digest.clone(),
                stage: manifest.map(|manifest| manifest.stage),
                what: error.message,
            });
        }
        if !used.contains(digest) {
            found.without_key.push(digest.clone());
        }
    }
    let there: BTreeSet<&String> = digests.iter().collect();
    let gone = records
        .iter()
        .filter(|(_, record)| record.outputs.values().any(|digest| !there.contains(digest)));
    found.without_objects = gone.map(|(key, _)| key.clone()).collect();
    Ok(found)
}

impl Inspection {
    /// Whether nothing is damaged. What is gone, or what no key has, is no damage.
    pub fn is_sound(&self) -> bool {
        self.damaged.is_empty() && self.bad_keys.is_empty()
    }
}
