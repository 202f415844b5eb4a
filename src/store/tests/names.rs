//! Natural order and data set patterns.

use std::cmp::Ordering;

use proptest::prelude::*;

use crate::store::names::{Pattern, compare_natural};

#[test]
fn numbers_in_names_compare_by_value() {
    let sorted = [
        "",
        "a",
        "a1",
        "a2",
        "a02b",
        "a10",
        "a10.png",
        "a11",
        "a99999999999999999999999999999998",
        "a99999999999999999999999999999999",
        "a100000000000000000000000000000000",
        "aa",
        "b",
        "lenet2.png",
        "lenet10.png",
        "\u{e9}",
    ];
    for pair in sorted.windows(2) {
        assert_eq!(
            compare_natural(pair[0], pair[1]),
            Ordering::Less,
            "{pair:?}"
        );
        assert_eq!(
            compare_natural(pair[1], pair[0]),
            Ordering::Greater,
            "{pair:?}"
        );
    }
}

#[test]
fn names_that_differ_only_in_zeros_are_not_equal() {
    assert_eq!(compare_natural("a01", "a1"), Ordering::Less);
    assert_eq!(compare_natural("a1", "a01"), Ordering::Greater);
    // The zeros decide only where nothing else does.
    assert_eq!(compare_natural("a01b", "a1a"), Ordering::Greater);
}

#[test]
fn a_data_set_means_stem_anything_extension() {
    let check = |dataset: &str, names: &[&str]| {
        let all = [
            "lenet.png",
            "lenet0.png",
            "lenet12.png",
            "lenet/3.png",
            "lenet1.jpg",
            "lene.png",
            "lenet",
            "d.x/lenet1.png",
            "d.x/lenet",
            "lenet1.png.txt",
            ".png",
        ];
        let pattern = Pattern::new(dataset);
        let found: Vec<_> = all
            .into_iter()
            .filter(|name| pattern.matches(name))
            .collect();
        assert_eq!(found, names, "{dataset}");
    };
    check(
        "lenet.png",
        &["lenet.png", "lenet0.png", "lenet12.png", "lenet/3.png"],
    );
    check("lenet1.jpg", &["lenet1.jpg"]);
    check("lenet1", &["lenet12.png", "lenet1.jpg", "lenet1.png.txt"]);
    check("d.x/lenet", &["d.x/lenet1.png", "d.x/lenet"]);
    check("d.x/lenet.png", &["d.x/lenet1.png"]);
    check("*.png", &[]);
    // Stem and extension never share characters.
    assert!(!Pattern::new("a.aa.aa").matches("a.aa"));
}

proptest! {
    #[test]
    fn numbers_of_matches_are_in_the_natural_order_of_the_names(
        stem in "[a-c0-2/]{0,4}", extension in "(\\.[a-z0-9]{0,3})?",
        a in "[0-9]{0,20}", b in "[0-9]{0,20}",
    ) {
        let dataset = format!("{stem}{extension}");
        let pattern = Pattern::new(&dataset);
        let names = [&a, &b].map(|middle| format!("{}{middle}{}", pattern.stem(), pattern.extension()));
        let numbers = names.each_ref().map(|name| pattern.number(name));
        if let [Some(x), Some(y)] = numbers {
            prop_assert_eq!(x.cmp(&y), compare_natural(&names[0], &names[1]));
        }
    }

    #[test]
    fn natural_order_is_total(
        a in "[a01-9/.\u{e9}]{0,6}", b in "[a01-9/.\u{e9}]{0,6}", c in "[a01-9/.\u{e9}]{0,6}",
    ) {
        prop_assert_eq!(compare_natural(&a, &b), compare_natural(&b, &a).reverse());
        prop_assert_eq!(compare_natural(&a, &b).is_eq(), a == b);
        if compare_natural(&a, &b).is_le() && compare_natural(&b, &c).is_le() {
            prop_assert!(compare_natural(&a, &c).is_le());
        }
    }

    #[test]
    fn plain_numbers_compare_by_value(a: u64, b: u64) {
        let order = compare_natural(&format!("x{a}y"), &format!("x{b}y"));
        prop_assert_eq!(order, a.cmp(&b));
    }
}
