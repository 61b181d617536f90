//! Following FunctionKeys.

use std::{collections::HashSet, sync::Arc};

use kube::{Resource, ResourceExt, core::DeserializeGuard};

use crate::{
    api::{
        convert::{Declaration, Workload},
        v1alpha1::FunctionKey,
    },
    controllers::{
        Item,
        context::Context,
        naming::{Name, Unreadable},
        watch::Follower,
    },
};

/// Follows FunctionKeys.
pub struct Declarations {
    context: Arc<Context>,
    scope: Option<String>,
    listed: HashSet<Name>,
}

impl Declarations {
    /// Those of one namespace, or of all.
    pub fn new(context: &Arc<Context>, scope: Option<&str>) -> Self {
        Self {
            context: Arc::clone(context),
            scope: scope.map(str::to_owned),
            listed: HashSet::new(),
        }
    }

    fn forget(&self, name: &Name) {
        let before = self.context.cache.lock().forget(name);
        if let Some(before) = before {
            call_for(&self.context, &before);
        }
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

impl Follower<DeserializeGuard<FunctionKey>> for Declarations {
    fn seen(&mut self, object: DeserializeGuard<FunctionKey>, first: bool) {
        let name = Name::new(object.namespace().unwrap_or_default(), object.name_any());
        let uid = object.uid().unwrap_or_default();
        let generation = object.meta().generation;
        if first {
            self.listed.insert(name.clone());
        }
        let read = object
            .0
            .map_err(|error| error.to_string())
            .and_then(|object| Declaration::read(object).map_err(|error| error.to_string()));
        let declaration = match read {
            Ok(declaration) => declaration,
            Err(error) => {
                tracing::error!(
                    k8s.namespace.name = name.namespace,
                    function_key.name = name.name,
                    error,
                    "a FunctionKey cannot be read; what it declared last stands"
                );
                let unreadable = Unreadable {
                    uid,
                    generation,
                    fault: error,
                };
                let news = self
                    .context
                    .cache
                    .lock()
                    .declare_unreadable(name.clone(), unreadable);
                if news {
                    self.context.queue.soon(Item::Unreadable(name));
                }
                return;
            }
        };
        let before = {
            let mut state = self.context.cache.lock();
            if state
                .declaration(&name)
                .is_some_and(|known| **known == declaration)
            {
                return;
            }
            state.declare(declaration.clone())
        };
        // What it no longer names has to be looked at as well.
        if let Some(before) = before.filter(|before| {
            before.targets != declaration.targets || before.owner != declaration.owner
        }) {
            call_for(&self.context, &before);
        }
        call_for(&self.context, &declaration);
    }

    fn gone(&mut self, object: &DeserializeGuard<FunctionKey>) {
        self.forget(&Name::new(
            object.namespace().unwrap_or_default(),
            object.name_any(),
        ));
    }

    fn begin(&mut self) {
        self.listed.clear();
    }

    fn complete(&mut self) {
        let known: Vec<Name> = self
            .context
            .cache
            .lock()
            .declarations()
            .map(|declaration| Name::from(&**declaration))
            .collect();
        let listed = std::mem::take(&mut self.listed);
        // With one watch for each namespace, a list speaks of its own namespace only.
        let mine = |name: &Name| {
            self.scope
                .as_ref()
                .is_none_or(|scope| *scope == name.namespace)
        };
        for name in known
            .iter()
            .filter(|name| mine(name) && !listed.contains(name))
        {
            self.forget(name);
        }
    }
}
