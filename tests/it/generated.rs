//! What is generated is what is committed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

#[test]
fn the_committed_definitions_are_the_generated_ones() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let generated: BTreeMap<String, String> = claviger::api::crds()
        .iter()
        .map(|crd| {
            let name = crd.metadata.name.as_deref().unwrap();
            (
                format!("{name}.yaml"),
                claviger::api::crd_yaml(crd).unwrap(),
            )
        })
        .collect();
    for copy in [
        "crds",
        "charts/claviger/files/crds",
        "charts/claviger-crds/files/crds",
    ] {
        let committed: BTreeSet<String> = fs::read_dir(root.join(copy))
            .unwrap()
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(committed, generated.keys().cloned().collect(), "{copy}");
        for (file, generated) in &generated {
            let committed = fs::read_to_string(root.join(copy).join(file)).unwrap();
            assert!(
                committed == *generated,
                "{copy}/{file} is out of date: run `make crds`"
            );
        }
    }
}

#[test]
fn definitions_are_small_enough_for_client_side_apply() {
    // The last-applied annotation holds at most 256 KiB.
    for crd in claviger::api::crds() {
        assert!(claviger::api::crd_yaml(&crd).unwrap().len() < 128 << 10);
    }
}

#[test]
fn every_field_is_documented() {
    fn undocumented(path: &str, schema: &serde_json::Value, found: &mut Vec<String>) {
        let fields = schema["properties"]
            .as_object()
            .cloned()
            .unwrap_or_default();
        for (name, field) in fields {
            let path = format!("{path}.{name}");
            if field["description"].as_str().is_none_or(str::is_empty) {
                found.push(path.clone());
            }
            undocumented(&path, &field, found);
            undocumented(&path, &field["items"], found);
        }
    }
    let mut found = Vec::new();
    for crd in claviger::api::crds() {
        let crd = serde_json::to_value(crd).unwrap();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        for part in ["spec", "status"] {
            undocumented(part, &schema["properties"][part], &mut found);
        }
    }
    assert!(found.is_empty(), "{found:?}");
}
