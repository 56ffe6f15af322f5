//! The paths that one module's code names, and the modules that it declares.

use proc_macro2::{Span, TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, ImplItem, Item, ItemMod, ItemUse, Macro, Meta, MetaList, TraitItem, UseTree};

/// A path that the code names.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) segments: Vec<String>,
    pub(super) line: usize,
    /// The name that a `use` gives to what the path leads to.
    pub(super) binds: Option<String>,
}

/// What is collected of one module.
#[derive(Default)]
pub(super) struct Paths<'ast> {
    pub(super) named: Vec<Named>,
    pub(super) modules: Vec<&'ast ItemMod>,
}

impl<'ast> Paths<'ast> {
    /// Collects from the items of one module; those of modules within it are left to the caller.
    pub(super) fn of(items: &'ast [Item]) -> Self {
        let mut paths = Self::default();
        for item in items {
            paths.visit_item(item);
        }
        paths
    }

    fn add(&mut self, segments: Vec<String>, span: Span, binds: Option<String>) {
        self.named.push(Named {
            segments,
            line: span.start().line,
            binds,
        });
    }

    fn add_use(&mut self, tree: &UseTree, before: &[String]) {
        let with = |name: &dyn ToString| {
            let mut segments = before.to_vec();
            if name.to_string() != "self" || before.is_empty() {
                segments.push(name.to_string());
            }
            segments
        };
        match tree {
            UseTree::Path(path) => self.add_use(&path.tree, &with(&path.ident)),
            UseTree::Name(name) => {
                let segments = with(&name.ident);
                let binds = segments.last().cloned();
                self.add(segments, name.ident.span(), binds);
            }
            UseTree::Rename(rename) => {
                let binds = Some(rename.rename.to_string());
                self.add(with(&rename.ident), rename.ident.span(), binds);
            }
            UseTree::Glob(glob) => {
                self.add(before.to_vec(), glob.star_token.spans[0], None);
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.add_use(tree, before);
                }
            }
        }
    }

    /// Finds the paths in the tokens of a macro or an attribute, which have no syntax tree.
    fn scan(&mut self, tokens: TokenStream) {
        let mut tokens = tokens.into_iter().peekable();
        while let Some(token) = tokens.next() {
            let first = match token {
                TokenTree::Group(group) => {
                    self.scan(group.stream());
                    continue;
                }
                TokenTree::Ident(ident) if is_anchor(&ident.to_string()) => ident,
                TokenTree::Ident(_) | TokenTree::Punct(_) | TokenTree::Literal(_) => continue,
            };
            let mut segments = vec![first.to_string()];
            while tokens.next_if(is_colon).is_some() && tokens.next_if(is_colon).is_some() {
                let Some(TokenTree::Ident(ident)) = tokens.next_if(is_ident) else {
                    break;
                };
                segments.push(ident.to_string());
            }
            if segments.len() > 1 {
                self.add(segments, first.span(), None);
            }
        }
    }
}

impl<'ast> Visit<'ast> for Paths<'ast> {
    fn visit_item(&mut self, item: &'ast Item) {
        if !is_test(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        let attributes = match item {
            ImplItem::Const(item) => &item.attrs,
            ImplItem::Fn(item) => &item.attrs,
            ImplItem::Type(item) => &item.attrs,
            ImplItem::Macro(item) => &item.attrs,
            _ => return,
        };
        if !is_test(attributes) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_trait_item(&mut self, item: &'ast TraitItem) {
        let attributes = match item {
            TraitItem::Const(item) => &item.attrs,
            TraitItem::Fn(item) => &item.attrs,
            TraitItem::Type(item) => &item.attrs,
            TraitItem::Macro(item) => &item.attrs,
            _ => return,
        };
        if !is_test(attributes) {
            visit::visit_trait_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        self.modules.push(item);
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        // With a colon in front it leads to another crate.
        if item.leading_colon.is_none() {
            self.add_use(&item.tree, &[]);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> = path
            .segments
            .iter()
            .map(|segment| segment.ident.to_string())
            .collect();
        if let [first, _, ..] = segments.as_slice()
            && is_anchor(first)
            && let Some(first) = path.segments.first()
        {
            self.add(segments, first.ident.span(), None);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        self.scan(call.tokens.clone());
        visit::visit_macro(self, call);
    }

    fn visit_meta_list(&mut self, list: &'ast MetaList) {
        self.scan(list.tokens.clone());
    }
}

/// Whether a path that begins so leads to this crate.
fn is_anchor(segment: &str) -> bool {
    matches!(segment, "crate" | "self" | "super")
}

fn is_colon(token: &TokenTree) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == ':')
}

fn is_ident(token: &TokenTree) -> bool {
    matches!(token, TokenTree::Ident(_))
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::ExternCrate(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::ForeignMod(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::TraitAlias(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// Whether the attributes leave an item to tests: `cfg(test)` or `cfg(all(test, ...))`.
fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::List(list) if list.path.is_ident("cfg") => {
            let condition = list.tokens.to_string().replace(' ', "");
            condition == "test" || condition.starts_with("all(test,")
        }
        Meta::List(_) | Meta::Path(_) | Meta::NameValue(_) => false,
    })
}
