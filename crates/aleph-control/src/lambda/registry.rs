//! The functions of all accounts, in memory and in the node's journal.
//!
//! A change is made on a copy, journaled, and only then seen; so whoever reads never sees what
//! could still be lost. Changes of one function come one after another. What reads takes no lock
//! for longer than a look-up.

use super::error::LambdaError;
use super::function::{CodeRef, Function, Head, LATEST, Version};
use aleph_executor::journal::{FunctionRow, Journal, JournalError};
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use tokio::sync::Mutex;

/// How many functions may be changed at once.
const LANES: usize = 64;

/// The functions of an account.
#[derive(Debug, Default)]
struct Holding {
    functions: BTreeMap<String, Arc<Function>>,
    /// What its functions have reserved together.
    reserved: u64,
}

/// An account, a function of it, and an alias or `$LATEST`.
type Place = (String, String, String);

/// The functions of all accounts.
pub(crate) struct Registry {
    journal: Journal,
    held: RwLock<HashMap<String, Holding>>,
    /// Whose URL an id is: account, function, and alias or `$LATEST`. It may be behind: what a
    /// function says of its URLs counts.
    urls: RwLock<HashMap<String, Place>>,
    lanes: Vec<Mutex<()>>,
    hasher: RandomState,
}

impl Registry {
    /// Reads what the journal keeps. One function that cannot be read is an error: without it,
    /// its code would be taken for nobody's.
    pub(crate) async fn open(journal: Journal) -> Result<Self, JournalError> {
        let mut held: HashMap<String, Holding> = HashMap::new();
        let mut parts: BTreeMap<(String, String), Vec<FunctionRow>> = BTreeMap::new();
        for row in journal.functions().await? {
            let key = (row.account.clone(), row.function.clone());
            parts.entry(key).or_default().push(row);
        }
        for ((account, name), rows) in parts {
            let function = assemble(&account, &name, rows).map_err(|source| {
                let what = format!("function {name} of {account}");
                JournalError::Damaged { what, source }
            })?;
            let holding = held.entry(account).or_default();
            holding.functions.insert(name, Arc::new(function));
        }
        held.values_mut().for_each(Holding::count);
        let mut urls = HashMap::new();
        let functions = held.values().flat_map(|holding| holding.functions.values());
        functions.for_each(|function| index(&mut urls, None, Some(function)));
        Ok(Self {
            journal,
            held: RwLock::new(held),
            urls: RwLock::new(urls),
            lanes: (0..LANES).map(|_| Mutex::new(())).collect(),
            hasher: RandomState::new(),
        })
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<String, Holding>> {
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn lane(&self, account: &str, name: &str) -> &Mutex<()> {
        let hash = self.hasher.hash_one((account, name));
        let lanes = u64::try_from(LANES).unwrap_or(1);
        &self.lanes[usize::try_from(hash % lanes).unwrap_or(0)]
    }

    /// A function.
    pub(crate) fn get(&self, account: &str, name: &str) -> Option<Arc<Function>> {
        let held = self.read();
        held.get(account)?.functions.get(name).cloned()
    }

    /// The function behind a URL, and the alias or `$LATEST` that the URL belongs to.
    pub(crate) fn by_url(&self, id: &str) -> Option<(Arc<Function>, String)> {
        let urls = self.urls.read().unwrap_or_else(PoisonError::into_inner);
        let (account, name, key) = urls.get(id).cloned()?;
        drop(urls);
        let function = self.get(&account, &name)?;
        let there = function.head.urls.get(&key).is_some_and(|url| url.id == id);
        there.then_some((function, key))
    }

    fn reindex(&self, before: Option<&Function>, after: Option<&Function>) {
        let some = |function: Option<&Function>| function.is_some_and(|f| !f.head.urls.is_empty());
        if !some(before) && !some(after) {
            return;
        }
        let mut urls = self.urls.write().unwrap_or_else(PoisonError::into_inner);
        index(&mut urls, before, after);
    }

    /// The functions of an account whose names come after `after`, at most so many; and whether
    /// there are more.
    pub(crate) fn list(
        &self,
        account: &str,
        after: Option<&str>,
        most: usize,
    ) -> (Vec<Arc<Function>>, bool) {
        let held = self.read();
        let Some(holding) = held.get(account) else {
            return (Vec::new(), false);
        };
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut functions = holding.functions.range::<str, _>((from, Bound::Unbounded));
        let page = functions.by_ref().take(most);
        let page = page.map(|(_, function)| Arc::clone(function)).collect();
        (page, functions.next().is_some())
    }

    /// Every function of every account.
    pub(crate) fn all(&self) -> Vec<Arc<Function>> {
        let held = self.read();
        let holdings = held.values();
        let functions = holdings.flat_map(|holding| holding.functions.values());
        functions.cloned().collect()
    }

    /// How many functions an account has, and how many bytes of code.
    pub(crate) fn usage(&self, account: &str) -> (usize, u64) {
        let held = self.read();
        held.get(account).map_or((0, 0), |holding| {
            let sizes = holding.functions.values().map(|f| f.code_size());
            (holding.functions.len(), sizes.sum())
        })
    }

    /// What an account's functions have reserved together.
    pub(crate) fn reserved(&self, account: &str) -> u64 {
        self.read()
            .get(account)
            .map_or(0, |holding| holding.reserved)
    }

    /// What is kept ready of an account's functions without a reservation, but for one of them.
    pub(crate) fn provisioned_of_others(&self, account: &str, name: &str) -> u64 {
        let held = self.read();
        let functions = held.get(account).into_iter().flat_map(|h| &h.functions);
        let others = functions.filter(|(other, f)| *other != name && f.head.reserved.is_none());
        others.map(|(_, f)| f.head.all_provisioned(None)).sum()
    }

    /// Keeps a new function.
    pub(crate) async fn create(&self, function: Function) -> Result<Arc<Function>, LambdaError> {
        let (account, name) = (function.account.clone(), function.name.clone());
        let _turn = self.lane(&account, &name).lock().await;
        if self.get(&account, &name).is_some() {
            return Err(LambdaError::conflict(format!(
                "Function already exist: {name}"
            )));
        }
        self.keep(None, &function).await?;
        Ok(self.show(function))
    }

    /// Changes a function. Where `change` fails, nothing is changed.
    pub(crate) async fn change<T>(
        &self,
        account: &str,
        name: &str,
        change: impl FnOnce(&mut Function) -> Result<T, LambdaError>,
    ) -> Result<(Arc<Function>, T), LambdaError> {
        let _turn = self.lane(account, name).lock().await;
        let before = self
            .get(account, name)
            .ok_or_else(|| LambdaError::no_function(name))?;
        let mut after = Function::clone(&before);
        let value = change(&mut after)?;
        self.keep(Some(&before), &after).await?;
        Ok((self.show(after), value))
    }

    /// Removes a function with all that waits for it, and gives what it was.
    pub(crate) async fn remove(
        &self,
        account: &str,
        name: &str,
    ) -> Result<Arc<Function>, LambdaError> {
        let _turn = self.lane(account, name).lock().await;
        let function = self
            .get(account, name)
            .ok_or_else(|| LambdaError::no_function(name))?;
        self.journal.remove_function(account, name).await?;
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(holding) = held.get_mut(account) {
            holding.functions.remove(name);
            holding.count();
            if holding.functions.is_empty() {
                held.remove(account);
            }
        }
        drop(held);
        self.reindex(Some(&function), None);
        Ok(function)
    }

    /// Writes down what differs.
    async fn keep(&self, before: Option<&Function>, after: &Function) -> Result<(), LambdaError> {
        let mut kept = Vec::new();
        if before.is_none_or(|before| before.head != after.head) {
            kept.push((String::new(), written(&after.head)?));
        }
        for version in after.all_versions() {
            let known = before.and_then(|before| before.version(&version.version));
            if known.is_none_or(|known| !Arc::ptr_eq(known, version)) {
                kept.push((version.version.clone(), written(&**version)?));
            }
        }
        let gone = |version: &&Arc<Version>| after.version(&version.version).is_none();
        let removed: Vec<String> = before
            .into_iter()
            .flat_map(Function::all_versions)
            .filter(gone)
            .map(|version| version.version.clone())
            .collect();
        if kept.is_empty() && removed.is_empty() {
            return Ok(());
        }
        let (account, name) = (&after.account, &after.name);
        let journal = &self.journal;
        Ok(journal.keep_function(account, name, kept, removed).await?)
    }

    fn show(&self, function: Function) -> Arc<Function> {
        let function = Arc::new(function);
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        let holding = held.entry(function.account.clone()).or_default();
        let before = holding
            .functions
            .insert(function.name.clone(), Arc::clone(&function));
        let reserved = before.as_ref().and_then(|before| before.head.reserved);
        if reserved != function.head.reserved {
            holding.count();
        }
        drop(held);
        self.reindex(before.as_deref(), Some(&function));
        function
    }

    /// The code that versions refer to.
    pub(crate) fn codes(&self) -> Vec<CodeRef> {
        let mut codes = Vec::new();
        for function in self.all() {
            for version in function.all_versions() {
                codes.push(version.code.clone());
                // While a change is prepared, or after one that failed, earlier code serves.
                if let Some(serving) = &version.serving
                    && let aleph_executor::functions::Code::Task { image, digest, .. } =
                        &serving.code
                {
                    codes.push(CodeRef::Zip {
                        sha256: String::new(),
                        size: 0,
                        image: image.clone(),
                        digest: digest.clone(),
                    });
                }
            }
        }
        codes
    }
}

impl Holding {
    fn count(&mut self) {
        let reserved = self.functions.values().filter_map(|f| f.head.reserved);
        self.reserved = reserved.map(u64::from).sum();
    }
}

/// Finds the URLs of a function as it is now, and no longer those that it was.
fn index(urls: &mut HashMap<String, Place>, before: Option<&Function>, after: Option<&Function>) {
    for url in before.into_iter().flat_map(|f| f.head.urls.values()) {
        urls.remove(&url.id);
    }
    let Some(function) = after else { return };
    for (key, url) in &function.head.urls {
        let place = (function.account.clone(), function.name.clone(), key.clone());
        urls.insert(url.id.clone(), place);
    }
}

fn written(value: &impl serde::Serialize) -> Result<String, LambdaError> {
    serde_json::to_string(value)
        .map_err(|_| LambdaError::internal("a function cannot be written down"))
}

/// A function of its rows.
fn assemble(
    account: &str,
    name: &str,
    rows: Vec<FunctionRow>,
) -> Result<Function, serde_json::Error> {
    let mut head = None;
    let mut latest = None;
    let mut versions = BTreeMap::new();
    for FunctionRow { part, record, .. } in rows {
        match part.as_str() {
            "" => head = Some(serde_json::from_str::<Head>(&record)?),
            LATEST => latest = Some(Arc::new(serde_json::from_str::<Version>(&record)?)),
            number => {
                let number = number.parse().map_err(serde::de::Error::custom)?;
                versions.insert(number, Arc::new(serde_json::from_str(&record)?));
            }
        }
    }
    let missing = |what| serde::de::Error::custom(format!("its {what} is missing"));
    Ok(Function {
        account: account.to_owned(),
        name: name.to_owned(),
        latest: latest.ok_or_else(|| missing("latest version"))?,
        versions,
        head: head.ok_or_else(|| missing("head"))?,
    })
}
