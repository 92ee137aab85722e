//! How much a text of JSON is in memory, told without taking it apart.
//!
//! Seven bytes such as `{"":0},` become an object of hundreds. Who takes apart what strangers say asks first what it would come to.

/// What an object takes with its first members, a list with its first elements, and each one after those, in bytes.
const OBJECT_BYTES: usize = 700;
const LIST_BYTES: usize = 160;
const MEMBER_BYTES: usize = 80;

/// What a text of JSON holds. Of what is no JSON the numbers say nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JsonShape {
    /// The memory that its values take, in bytes; rather too much than too little.
    pub weight: usize,
    /// The members of the outermost object, or list, and of those right in it.
    pub members: usize,
}

impl JsonShape {
    /// Looks at each byte once, and keeps nothing.
    #[must_use]
    pub fn of(json: &[u8]) -> Self {
        let mut shape = Self { weight: json.len(), members: 0 };
        let (mut depth, mut before) = (0_usize, 0);
        let mut bytes = json.iter().copied();
        while let Some(byte) = bytes.next() {
            match byte {
                b'"' => skip_text(&mut bytes),
                b'{' | b'[' => {
                    depth += 1;
                    shape.weight += if byte == b'{' { OBJECT_BYTES } else { LIST_BYTES };
                }
                b'}' | b']' => {
                    depth = depth.saturating_sub(1);
                    // What is empty takes nothing.
                    shape.weight -= match before {
                        b'{' => OBJECT_BYTES,
                        b'[' => LIST_BYTES,
                        _ => 0,
                    };
                }
                b',' => {
                    shape.weight += MEMBER_BYTES;
                    shape.members += usize::from(depth <= 2);
                }
                b' ' | b'\t' | b'\n' | b'\r' => continue,
                _ => {}
            }
            before = byte;
        }
        shape
    }
}

/// Passes over the rest of a text, to its end.
fn skip_text(bytes: &mut impl Iterator<Item = u8>) {
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return,
            b'\\' => _ = bytes.next(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(json: &str) -> usize {
        JsonShape::of(json.as_bytes()).weight - json.len()
    }

    #[test]
    fn what_is_in_texts_weighs_nothing() {
        assert_eq!(weight(r#""a,{[\"{,\\","#), MEMBER_BYTES);
        assert_eq!(weight(r#""{"#), 0);
        assert_eq!(weight(r#""\"#), 0);
        assert_eq!(weight(r#""\\"{"#), OBJECT_BYTES);
    }

    #[test]
    fn objects_and_lists_weigh_unless_they_are_empty() {
        assert_eq!(weight(r#"{"":0}"#), OBJECT_BYTES);
        assert_eq!(weight("[[1,2],{ },[],{}]"), 2 * LIST_BYTES + 4 * MEMBER_BYTES);
        assert_eq!(weight("}}]]{}"), 0);
    }

    #[test]
    fn members_are_those_of_the_outer_two_levels() {
        let members = |json: &str| JsonShape::of(json.as_bytes()).members;
        assert_eq!(members(r#"{"pdus":[{},{"a":[1,2,3],"b":1},{}],"edus":[]}"#), 3);
        assert_eq!(members("[1,2,[3,4,[5,6]]]"), 4);
    }

    /// It says no less than what ruma's values take, by the densest texts.
    #[test]
    fn the_weight_is_no_less_than_what_values_take() {
        // A tree of one entry has a node for eleven, each with a text and a value.
        let node = 11 * (size_of::<String>() + size_of::<ruma::CanonicalJsonValue>());
        assert!(node < OBJECT_BYTES, "{node}");
        // A list that grows has room for twice as much.
        assert!(2 * size_of::<ruma::CanonicalJsonValue>() <= MEMBER_BYTES);
        assert!(4 * size_of::<ruma::CanonicalJsonValue>() <= LIST_BYTES);
    }
}
