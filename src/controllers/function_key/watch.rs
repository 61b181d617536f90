//! Following FunctionKeys.

use std::sync::Arc;

use crate::{
    api::{
        convert::{Declaration, Workload},
        v1alpha1::FunctionKey,
    },
    controllers::{
        Item,
        context::Context,
        declarations::Kind,
        naming::{Name, Unreadable},
    },
};

/// FunctionKeys.
pub struct FunctionKeys(pub Arc<Context>);

impl Kind for FunctionKeys {
    type Resource = FunctionKey;
    type Read = Declaration;

    fn read(resource: FunctionKey) -> Result<Declaration, String> {
        Declaration::read(resource).map_err(|error| error.to_string())
    }

    fn declare(&self, declaration: Declaration) {
        let before = {
            let mut state = self.0.cache.lock();
            let name = Name::from(&declaration);
            let known = state.declaration(&name);
            let readable = state.unreadable(&name).is_none();
            if readable && known.is_some_and(|known| **known == declaration) {
                return;
            }
            state.declare(declaration.clone())
        };
        // What it no longer names has to be looked at as well.
        if let Some(before) = before.filter(|before| {
            before.targets != declaration.targets || before.owner != declaration.owner
        }) {
            call_for(&self.0, &before);
        }
        call_for(&self.0, &declaration);
    }

    fn declare_unreadable(&self, name: Name, unreadable: Unreadable) {
        let mut state = self.0.cache.lock();
        if state.declare_unreadable(name.clone(), unreadable) {
            self.0.queue.soon(Item::Unreadable(name));
        }
    }

    fn forget(&self, name: &Name) {
        let before = self.0.cache.lock().forget(name);
        if let Some(before) = before {
            call_for(&self.0, &before);
        }
    }

    fn names(&self) -> Vec<Name> {
        self.0.cache.lock().names().cloned().collect()
    }
}

/// Everything that a declaration bears on.
fn call_for(context: &Context, declaration: &Declaration) {
    let namespace = &declaration.namespace;
    context.queue.soon(Item::Store(declaration.store.clone()));
    for target in &declaration.targets {
        context
            .queue
            .soon(Item::Client(Name::new(namespace, &*target.secret)));
    }
    for workload in declaration.workloads() {
        context.queue.soon(Item::Workload(Workload {
            namespace: namespace.clone(),
            workload: workload.clone(),
        }));
    }
}
