//! Modules that need each other stand in one folder, and are few.
//!
//! A file needs another if it names something that is defined there; a name that a `mod.rs` only passes on counts for the
//! file that it comes from.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use syn::visit::{self, Visit};

use super::ratchet::hold;
use super::source::{CRATES, Crate, File, files};

/// The most files of a circle inside one folder.
const MOST: usize = 4;

/// How many times a name may be passed on before it is given up.
const PASSED_ON: usize = 8;

type Path = Vec<String>;

/// What one file names, as paths from the crate's root.
#[derive(Default)]
struct Named {
    module: Path,
    /// All paths, but those that are only passed on.
    paths: Vec<Path>,
    /// What `use` brings, by the name that it has here.
    imports: HashMap<String, Path>,
}

impl Named {
    fn absolute(&self, path: &[String]) -> Option<Path> {
        let mut base = match path.first()?.as_str() {
            "crate" => Vec::new(),
            "self" | "super" => self.module.clone(),
            _ => return None,
        };
        let mut rest = &path[1..];
        if path[0] == "super" {
            base.pop();
            while let [first, more @ ..] = rest
                && first == "super"
            {
                base.pop();
                rest = more;
            }
        }
        base.extend(rest.iter().cloned());
        Some(base)
    }

    fn import(
        &mut self,
        tree: &syn::UseTree,
        before: &mut Path,
        passed_on: bool,
        children: &BTreeSet<String>,
    ) {
        match tree {
            syn::UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.import(&path.tree, before, passed_on, children);
                before.pop();
            }
            syn::UseTree::Name(name) => self.add(
                before,
                &name.ident.to_string(),
                &name.ident.to_string(),
                passed_on,
                children,
            ),
            syn::UseTree::Rename(name) => self.add(
                before,
                &name.ident.to_string(),
                &name.rename.to_string(),
                passed_on,
                children,
            ),
            syn::UseTree::Glob(_) => {}
            syn::UseTree::Group(group) => {
                for tree in &group.items {
                    self.import(tree, before, passed_on, children);
                }
            }
        }
    }

    fn add(&mut self, before: &Path, name: &str, here: &str, passed_on: bool, children: &BTreeSet<String>) {
        let mut path = before.clone();
        if name != "self" {
            path.push(name.to_owned());
        }
        let of_child = path.first().is_some_and(|first| children.contains(first));
        let absolute = match of_child {
            true => self.module.iter().cloned().chain(path).collect(),
            false => match self.absolute(&path) {
                Some(absolute) => absolute,
                None => return,
            },
        };
        let here = if name == "self" {
            before.last().cloned().unwrap_or_default()
        } else {
            here.to_owned()
        };
        self.imports.insert(here, absolute.clone());
        if !(passed_on && of_child) {
            self.paths.push(absolute);
        }
    }
}

struct Reader {
    named: Named,
    children: BTreeSet<String>,
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && matches!(&attribute.meta, syn::Meta::List(list) if list.tokens.to_string().contains("test"))
    })
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_test(&item.attrs) && item.content.is_none() {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let passed_on = !matches!(item.vis, syn::Visibility::Inherited);
        if !is_test(&item.attrs) {
            let children = std::mem::take(&mut self.children);
            self.named
                .import(&item.tree, &mut Vec::new(), passed_on, &children);
            self.children = children;
        }
    }

    /// `pub(super)` says who may look in, and needs nothing that is there.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Path = path
            .segments
            .iter()
            .map(|segment| segment.ident.to_string())
            .collect();
        if segments
            .first()
            .is_some_and(|first| self.children.contains(first))
        {
            let whole = self.named.module.iter().cloned().chain(segments).collect();
            self.named.paths.push(whole);
        } else if let Some(absolute) = self.named.absolute(&segments) {
            self.named.paths.push(absolute);
        }
        visit::visit_path(self, path);
    }
}

fn named(file: &File) -> Named {
    let parsed = file.parsed();
    let modules = parsed.items.iter().filter_map(|item| match item {
        syn::Item::Mod(item) if item.content.is_none() && !is_test(&item.attrs) => {
            Some(item.ident.to_string())
        }
        _ => None,
    });
    let mut reader = Reader {
        children: modules.collect(),
        named: Named {
            module: file.module.clone(),
            ..Named::default()
        },
    };
    reader.visit_file(&parsed);
    reader.named
}

/// Which of a crate's files need which, by their places among them.
fn needs(all: &[&File]) -> Vec<BTreeSet<usize>> {
    let by_module: HashMap<&[String], usize> = all
        .iter()
        .enumerate()
        .map(|(place, file)| (file.module.as_slice(), place))
        .collect();
    let named: Vec<Named> = all.iter().map(|file| named(file)).collect();
    let resolve = |path: &Path| -> Option<usize> {
        let mut path = path.clone();
        for _ in 0..PASSED_ON {
            let depth = (0..=path.len())
                .rev()
                .find(|depth| by_module.contains_key(&path[..*depth]))?;
            let place = by_module[&path[..depth]];
            let Some(passed_on) = path.get(depth).and_then(|name| named[place].imports.get(name)) else {
                return Some(place);
            };
            path = passed_on
                .iter()
                .cloned()
                .chain(path[depth + 1..].iter().cloned())
                .collect();
        }
        None
    };
    let targets = |named: &Named| {
        named
            .paths
            .iter()
            .filter_map(resolve)
            .collect::<BTreeSet<usize>>()
    };
    let mut needs: Vec<BTreeSet<usize>> = named.iter().map(targets).collect();
    for (place, needs) in needs.iter_mut().enumerate() {
        needs.remove(&place);
    }
    needs
}

/// The groups of files of which each needs each other, in any number of steps.
fn circles(needs: &[BTreeSet<usize>]) -> Vec<BTreeSet<usize>> {
    let reach = |from: usize| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(at) = next.pop() {
            next.extend(needs[at].iter().filter(|to| seen.insert(**to)));
        }
        seen
    };
    let reached: Vec<BTreeSet<usize>> = (0..needs.len()).map(reach).collect();
    let circle = |at: usize| {
        reached[at]
            .iter()
            .copied()
            .filter(|other| reached[*other].contains(&at))
            .collect()
    };
    let all: BTreeSet<BTreeSet<usize>> = (0..needs.len()).map(circle).collect();
    all.into_iter().filter(|circle| circle.len() > 1).collect()
}

fn of_crate(of: &Crate) -> Vec<&'static File> {
    let of = of.name;
    files()
        .iter()
        .filter(|file| file.of.name == of && !file.is_tests())
        .collect()
}

/// The folder that all of these lie in.
fn folder(paths: &[&str]) -> String {
    let mut parts: Vec<&str> = paths[0].split('/').collect();
    parts.pop();
    while !paths
        .iter()
        .all(|path| path.starts_with(&format!("{}/", parts.join("/"))))
    {
        parts.pop();
    }
    parts.join("/")
}

#[test]
fn circles_are_small_and_in_one_folder() {
    let mut large: BTreeMap<String, usize> = BTreeMap::new();
    let mut members = String::new();
    for of in CRATES {
        let all = of_crate(of);
        for circle in circles(&needs(&all)) {
            let paths: Vec<&str> = circle.iter().map(|place| all[*place].path.as_str()).collect();
            let folder = folder(&paths);
            let in_one = paths
                .iter()
                .all(|path| path.rsplit_once('/').is_some_and(|(of, _)| of == folder));
            if !in_one || paths.len() > MOST {
                *large.entry(folder.clone()).or_default() += paths.len();
                members += &format!("{folder}: {}\n", paths.join(" "));
            }
        }
    }
    if std::env::var_os("MILLPOND_TIDY").is_some_and(|wish| wish == "list") {
        println!("{members}");
    }
    let mend = format!(
        "a circle has {MOST} files of one folder at most; what both need goes below them. MILLPOND_TIDY=list names the files"
    );
    hold("circle", &large, &mend);
}

#[test]
fn a_name_that_is_passed_on_counts_for_where_it_is_from() {
    let file = |path: &str, module: &[&str], text: &str| File {
        path: path.to_owned(),
        of: &CRATES[0],
        module: module.iter().map(|part| (*part).to_owned()).collect(),
        text: text.to_owned(),
    };
    let files = [
        file("lib.rs", &[], "mod a; mod b; mod c; pub use c::C;"),
        file("a.rs", &["a"], "use crate::C; struct A(super::b::B);"),
        file("b.rs", &["b"], "pub struct B; fn f(_: crate::a::A) {}"),
        file(
            "c.rs",
            &["c"],
            "pub struct C; pub(super) struct D; #[cfg(test)] mod tests { use crate::a::A; }",
        ),
    ];
    let files: Vec<&File> = files.iter().collect();
    let needs = needs(&files);
    assert_eq!(needs, [[].into(), [2, 3].into(), [1].into(), [].into()]);
    assert_eq!(circles(&needs), [[1, 2].into()]);
}
