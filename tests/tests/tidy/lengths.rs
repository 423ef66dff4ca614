//! Functions that fit a screen, few parameters, files that can be read.

use std::collections::BTreeMap;

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use super::ratchet::hold;
use super::source::{File, files};

const FUNCTION: usize = 60;
const PARAMETERS: usize = 5;
const FILE: usize = 500;

/// What each function of a file measures, by its name; of several of one name the most counts.
struct Functions<'a> {
    file: &'a File,
    /// Whose method is looked at.
    of: Vec<String>,
    lines: BTreeMap<String, usize>,
    parameters: BTreeMap<String, usize>,
}

impl Functions<'_> {
    fn measure(&mut self, signature: &syn::Signature, span: proc_macro2::Span) {
        let mut place = vec![self.file.path.clone()];
        place.extend(self.of.iter().cloned());
        place.push(signature.ident.to_string());
        let place = place.join("::");
        let lines = span.end().line + 1 - span.start().line;
        let most = |map: &mut BTreeMap<String, usize>, value: usize| {
            let entry = map.entry(place.clone()).or_default();
            *entry = value.max(*entry);
        };
        if lines > FUNCTION {
            most(&mut self.lines, lines);
        }
        let inputs = signature.inputs.iter();
        let parameters = inputs
            .filter(|input| matches!(input, syn::FnArg::Typed(_)))
            .count();
        if parameters > PARAMETERS {
            most(&mut self.parameters, parameters);
        }
    }
}

/// Where the body is, without attributes and docs.
fn extent(signature: &syn::Signature, body: &syn::Block) -> proc_macro2::Span {
    signature.span().join(body.span()).unwrap_or_else(|| body.span())
}

impl<'ast> Visit<'ast> for Functions<'_> {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.measure(&item.sig, extent(&item.sig, &item.block));
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.measure(&item.sig, extent(&item.sig, &item.block));
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        let name = match &*item.self_ty {
            syn::Type::Path(path) => path.path.segments.last().map(|segment| segment.ident.to_string()),
            _ => None,
        };
        self.of.push(name.unwrap_or_default());
        visit::visit_item_impl(self, item);
        self.of.pop();
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.of.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.of.pop();
    }
}

fn functions() -> (BTreeMap<String, usize>, BTreeMap<String, usize>) {
    let (mut lines, mut parameters) = (BTreeMap::new(), BTreeMap::new());
    for file in files().iter().filter(|file| !file.is_tests()) {
        let mut functions = Functions {
            file,
            of: Vec::new(),
            lines: BTreeMap::new(),
            parameters: BTreeMap::new(),
        };
        functions.visit_file(&file.parsed());
        lines.append(&mut functions.lines);
        parameters.append(&mut functions.parameters);
    }
    (lines, parameters)
}

#[test]
fn functions_fit_a_screen() {
    let mend = format!("a function has {FUNCTION} lines at most; give a part of it a name of its own");
    hold("lines", &functions().0, &mend);
}

#[test]
fn functions_have_few_parameters() {
    let mend =
        format!("a function has {PARAMETERS} parameters at most; those that travel together are a struct");
    hold("parameters", &functions().1, &mend);
}

#[test]
fn files_can_be_read() {
    let measured = files()
        .iter()
        .map(|file| (file.path.clone(), file.text.lines().count()));
    let long = measured.filter(|(_, lines)| *lines > FILE).collect();
    hold(
        "file",
        &long,
        &format!("a file has {FILE} lines at most; a second matter in it is a second file"),
    );
}
