//! What somebody may have meant by a misspelt name.

/// Returns the known name that is nearest to `wrong`, if one is near.
pub(crate) fn nearest<'a>(wrong: &str, known: &[&'a str]) -> Option<&'a str> {
    let wrong = wrong.replace('_', "-");
    let distance = |name: &&&str| strsim::damerau_levenshtein(&wrong, name);
    let near = known.iter().min_by_key(distance)?;
    (distance(&near) <= wrong.len().max(3) / 3).then_some(near)
}
