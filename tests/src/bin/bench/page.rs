//! The figures' place in docs/benchmarks.md; the words around it are people's.

use ::tests::{Broken, Outcome};

use super::figures::Figures;
use super::table;

const BEGIN: &str = "<!-- figures: written by `make bench RECORD=1` -->\n";
const END: &str = "<!-- end of figures -->\n";

/// The page with new figures.
pub(crate) fn refresh(page: &str, figures: &Figures) -> Outcome<String> {
    between(page, &table::markdown(figures))
}

fn between(page: &str, new: &str) -> Outcome<String> {
    let parts = page.split_once(BEGIN).and_then(|(head, rest)| {
        let (_, tail) = rest.split_once(END)?;
        Some((head, tail))
    });
    let (head, tail) =
        parts.ok_or_else(|| Broken::new("docs/benchmarks.md has no place marked for figures"))?;
    Ok(format!("{head}{BEGIN}\n{new}\n{END}{tail}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_figures_are_replaced() {
        let page = format!("# A\n{BEGIN}old\n{END}rest\n");
        let once = between(&page, "new\n").unwrap();
        assert_eq!(once, format!("# A\n{BEGIN}\nnew\n\n{END}rest\n"));
        assert_eq!(between(&once, "new\n").unwrap(), once);
        assert!(between("# A\n", "new").is_err());
    }
}
