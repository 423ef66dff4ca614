//! Documentation that says something.

use std::collections::BTreeMap;

use syn::visit::{self, Visit};

use super::ratchet::hold;
use super::source::{File, files};

/// The fewest words of a sentence that says something.
const WORDS: usize = 4;

struct Docs<'a> {
    file: &'a File,
    within: Vec<String>,
    short: BTreeMap<String, usize>,
}

impl Docs<'_> {
    fn look(&mut self, name: &str, attributes: &[syn::Attribute]) {
        let mut words = 0;
        let mut documented = false;
        for attribute in attributes {
            if let syn::Meta::NameValue(meta) = &attribute.meta
                && meta.path.is_ident("doc")
                && let syn::Expr::Lit(literal) = &meta.value
                && let syn::Lit::Str(text) = &literal.lit
            {
                documented = true;
                words += text.value().split_whitespace().count();
            }
        }
        if documented && words < WORDS {
            *self.short.entry(self.file.path.clone()).or_default() += 1;
            self.within.push(name.to_owned());
        }
    }
}

impl<'ast> Visit<'ast> for Docs<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let (name, attributes) = match item {
            syn::Item::Struct(item) => (&item.ident, &item.attrs),
            syn::Item::Enum(item) => (&item.ident, &item.attrs),
            syn::Item::Trait(item) => (&item.ident, &item.attrs),
            syn::Item::Fn(item) => (&item.sig.ident, &item.attrs),
            syn::Item::Const(item) => (&item.ident, &item.attrs),
            syn::Item::Type(item) => (&item.ident, &item.attrs),
            _ => return visit::visit_item(self, item),
        };
        self.look(&name.to_string(), attributes);
        visit::visit_item(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.look(&item.sig.ident.to_string(), &item.attrs);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        self.look(&item.sig.ident.to_string(), &item.attrs);
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        let name = field.ident.as_ref().map(ToString::to_string).unwrap_or_default();
        self.look(&name, &field.attrs);
    }

    fn visit_variant(&mut self, variant: &'ast syn::Variant) {
        self.look(&variant.ident.to_string(), &variant.attrs);
        visit::visit_variant(self, variant);
    }
}

#[test]
fn docs_say_something() {
    let mut short = BTreeMap::new();
    let mut names = Vec::new();
    for file in files().iter().filter(|file| !file.is_tests()) {
        let mut docs = Docs {
            file,
            within: Vec::new(),
            short: BTreeMap::new(),
        };
        docs.visit_file(&file.parsed());
        short.append(&mut docs.short);
        names.extend(
            docs.within
                .into_iter()
                .map(|name| format!("{}::{name}", file.path)),
        );
    }
    if std::env::var_os("MILLPOND_TIDY").is_some_and(|wish| wish == "list") {
        println!("{}", names.join("\n"));
    }
    let mend =
        format!("a doc has {WORDS} words at least, or says nothing and goes; MILLPOND_TIDY=list names them");
    hold("doc", &short, &mend);
}
