//! Paging, the same for all lists.

use axum::extract::Query;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::Uri;
use serde::{Deserialize, Serialize};

use super::Refusal;

const PER_PAGE: usize = 100;
/// What Vultr does with more is unknown; here more is taken for the most.
const PER_PAGE_MAX: usize = 500;

/// What a list's query may hold.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ListQuery {
    per_page: Option<String>,
    cursor: Option<String>,
    pub(super) label: Option<String>,
    pub(super) region: Option<String>,
    pub(super) tag: Option<String>,
    pub(super) hostname: Option<String>,
    pub(super) main_ip: Option<String>,
}

/// The end of every list: the total of the whole collection, and the ways on, empty where there is none.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Meta {
    total: usize,
    links: Links,
}

#[derive(Debug, PartialEq, Serialize)]
struct Links {
    next: String,
    prev: String,
}

impl ListQuery {
    pub(super) fn of(uri: &Uri) -> Result<Self, Refusal> {
        Query::try_from_uri(uri).map(|Query(query)| query).map_err(|error| Refusal::new(400, error.to_string()))
    }

    fn per_page(&self) -> usize {
        let asked = self.per_page.as_deref().and_then(|n| n.parse().ok());
        asked.filter(|n| *n > 0).unwrap_or(PER_PAGE).min(PER_PAGE_MAX)
    }

    /// Cuts the page that the cursor names; `place` finds an id among the items.
    pub(super) fn page<T>(
        &self,
        mut items: Vec<T>,
        id: impl Fn(&T) -> &str,
        place: impl Fn(&[T], &str) -> Option<usize>,
    ) -> Result<(Vec<T>, Meta), Refusal> {
        let start = match self.cursor.as_deref() {
            None | Some("") => 0,
            Some(cursor) => {
                decode(cursor).and_then(|id| place(&items, &id)).ok_or_else(|| Refusal::new(400, "Invalid cursor"))?
            }
        };
        let (total, per_page) = (items.len(), self.per_page());
        let link = |way: &str, at: Option<usize>| {
            let item = at.and_then(|at| items.get(at));
            item.map(|item| STANDARD.encode(format!("{way}__{}", id(item)))).unwrap_or_default()
        };
        let links = Links {
            next: link("next", start.checked_add(per_page)),
            prev: link("prev", (start > 0).then(|| start.saturating_sub(per_page))),
        };
        let page = items.drain(start.min(total)..).take(per_page).collect();
        Ok((page, Meta { total, links }))
    }
}

/// The id in a cursor: the first item of the page that it leads to.
fn decode(cursor: &str) -> Option<String> {
    let text = String::from_utf8(STANDARD.decode(cursor).ok()?).ok()?;
    let id = text.strip_prefix("next__").or(text.strip_prefix("prev__"))?;
    Some(id.to_owned())
}

/// The place of an id in a list that doesn't change.
pub(super) fn position<T>(items: &[T], id: impl Fn(&T) -> &str, wanted: &str) -> Option<usize> {
    items.iter().position(|item| id(item) == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(query: &str, total: usize) -> (Vec<String>, Meta) {
        let uri: Uri = format!("/v2/blocks?{query}").parse().unwrap();
        let items = (0..total).map(|n| n.to_string()).collect();
        let place = |items: &[String], id: &str| position(items, String::as_str, id);
        ListQuery::of(&uri).unwrap().page(items, String::as_str, place).unwrap()
    }

    #[test]
    fn the_cursor_is_written_as_vultr_s() {
        let (_, meta) = page("per_page=1", 2);
        assert_eq!(meta.links.next, STANDARD.encode("next__1"));
        assert_eq!(decode("bmV4dF9fMTMxOTgxNQ==").as_deref(), Some("1319815"));
    }

    #[test]
    fn a_full_last_page_has_no_next() {
        for (total, pages) in [(0, 1), (1, 1), (500, 1), (501, 2), (1000, 2)] {
            let (mut seen, mut rounds, mut cursor) = (Vec::new(), 0, String::new());
            loop {
                let (items, meta) = page(&format!("per_page=500&cursor={cursor}"), total);
                assert_eq!(meta.total, total);
                assert_eq!(meta.links.prev.is_empty(), rounds == 0);
                seen.extend(items);
                rounds += 1;
                cursor = meta.links.next;
                if cursor.is_empty() {
                    break;
                }
            }
            assert_eq!((seen.len(), rounds), (total, pages));
        }
    }

    #[test]
    fn pages_are_a_hundred_by_default_and_five_hundred_at_most() {
        assert_eq!(page("", 600).0.len(), 100);
        assert_eq!(page("per_page=900", 600).0.len(), 500);
    }
}
