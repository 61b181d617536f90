//! Templates: texts into which secrets are put, such as an address with a password in it.
//!
//! The syntax is Jinja's, the language is small and closed. Everything that is not named here is
//! refused when the template is read:
//!
//! - text, `{# comments #}`, `{% raw %}`, `{{ expressions }}`, `{% if %}`, `{% elif %}`, `{% else %}`;
//! - `secrets.name`, `secrets['a-name']`, and the same of `previous` for the value before the
//!   current one; names without regard to case, and always spelt out;
//! - string, number and truth literals, `~`, `and`, `or`, `not`, `a if b else c`, parentheses;
//! - the tests `defined` and `undefined`;
//! - the filters `b64encode`, `b64decode`, `json`, `urlencode`, `sha256`, `upper`, `lower`;
//! - lists and maps where `json` writes them: `{{ {'user': secrets.user} | json }}`.
//!
//! A template can so ask whether a secret is there, but not list secrets, compute the name of one
//! (it would show a value in a message or a status) or compare values. There are no loops and no
//! variables, so nothing is computed twice: time and memory are bounded by the length of the
//! template ([`MAX_TEMPLATE_BYTES`]) and by what goes through it ([`MAX_WORK_BYTES`]). What is
//! undefined cannot be printed. Truth values print as `True` and `False`, as Jinja has it; `json`
//! writes them small. Nothing is escaped unless a filter says so. A line feed at the end is kept.
//!
//! Rendering is done in rounds, for reading a secret is not this module's business: what is missing
//! is answered as [`Outcome::Needs`], and the caller fetches it and renders again.
//!
//! No error says more than its kind and a line: the template engine's own messages quote values.
//! Values are overwritten in memory when dropped, but for what `~` joins: that
//! is made by the engine, which does not do this.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::{self, Write},
    str,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use minijinja::{
    Environment, Error, ErrorKind, State, UndefinedBehavior, Value, context,
    machinery::{
        Token,
        ast::{BinOpKind, Expr, Stmt, UnaryOpKind},
        parse, tokenize,
    },
    syntax::SyntaxConfig,
    value::{Enumerator, Object, ObjectRepr, ValueKind},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest as _, Sha256};
use snafu::{Snafu, ensure};
use zeroize::Zeroizing;

use crate::domain::key::KeyMaterial;

/// Which value of a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Version {
    /// The one that counts: `secrets`.
    Current,
    /// The one before it, while it is still valid: `previous`.
    Previous,
}

/// A value that a template asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Input {
    /// The secret's name in lower case.
    pub secret: String,
    /// Which of its values.
    pub version: Version,
}

/// What came of rendering.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// These must be known first, whether or not they exist.
    Needs(BTreeSet<Input>),
    /// The text, and what it was made with (also what was only asked about).
    Text(KeyMaterial, BTreeSet<Input>),
}

/// A template that keeps to the language.
#[derive(Clone, PartialEq, Eq)]
pub struct Template {
    text: String,
    inputs: BTreeSet<Input>,
}

/// Why a template is refused or does not render.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Snafu)]
#[snafu(display("line {line}: {fault}"))]
pub struct TemplateError {
    /// Where in the template, counted from one.
    pub line: usize,
    /// What is wrong there.
    pub fault: Fault,
}

/// What is wrong with a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Longer than [`MAX_TEMPLATE_BYTES`].
    TooLong,
    /// More than [`MAX_TAG_TOKENS`] words in a tag, or more than [`MAX_TAGS`] statements.
    TooComplex,
    /// Not what the syntax allows.
    Syntax,
    /// A statement, an operator or a literal that is not in the language.
    NotAllowed,
    /// A variable other than `secrets` and `previous`, one of these as a whole, or a computed name.
    Name,
    /// A name that no secret can have.
    SecretName,
    /// No such filter, or arguments where it takes none.
    Filter,
    /// No such test, or arguments where it takes none.
    Test,
    /// A secret that does not exist, or has no previous value.
    Undefined,
    /// A filter got, or the template prints, what is no text.
    NotText,
    /// `b64decode` got what is not base64, or not that of text.
    NotBase64,
    /// More than [`MAX_OUTPUT_BYTES`] or [`MAX_WORK_BYTES`].
    TooLarge,
    /// Anything else.
    Failed,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => {
                write!(
                    f,
                    "the template is longer than {MAX_TEMPLATE_BYTES} bytes; divide it"
                )
            }
            Self::TooComplex => write!(
                f,
                "more than {MAX_TAG_TOKENS} words in a tag or {MAX_TAGS} statements in all; \
                 divide the template"
            ),
            Self::Syntax => f.write_str("the syntax is wrong; see that every tag is closed"),
            Self::NotAllowed => f.write_str(
                "this statement, operator or literal is not allowed in templates; use if, elif, \
                 else, ~, and, or, not, and filters",
            ),
            Self::Name => f.write_str(
                "only secrets and previous are known, each with the name of a secret spelt out, as \
                 in secrets['db-password']",
            ),
            Self::SecretName => f.write_str(
                "no secret can have this name; names are 1 to 127 letters, digits and hyphens",
            ),
            Self::Filter => f.write_str(
                "there is no such filter; use b64encode, b64decode, json, urlencode, sha256, upper \
                 or lower, without arguments",
            ),
            Self::Test => {
                f.write_str("there is no such test; use defined or undefined, without arguments")
            }
            Self::Undefined => f.write_str(
                "a secret is used that does not exist or has no previous value; declare it, or ask \
                 first with: is defined",
            ),
            Self::NotText => f.write_str(
                "something is used that is no text; put text there, or write it with json",
            ),
            Self::NotBase64 => f.write_str("b64decode was given what is not base64 of a text"),
            Self::TooLarge => write!(
                f,
                "the result has more than {MAX_OUTPUT_BYTES} bytes, or the secrets in it more than \
                 {MAX_WORK_BYTES}; divide the template"
            ),
            Self::Failed => f.write_str("the template could not be rendered; simplify it"),
        }
    }
}

impl Template {
    /// Reads a template.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        ensure!(
            text.len() <= MAX_TEMPLATE_BYTES,
            TemplateSnafu {
                line: 1_usize,
                fault: Fault::TooLong
            }
        );
        measure(text)?;
        let tree = parse(text, "template", syntax()).map_err(|error| TemplateError {
            fault: Fault::Syntax,
            line: line(&error),
        })?;
        let mut inputs = BTreeSet::new();
        statement(&tree, &mut inputs)?;
        Ok(Self {
            text: text.to_owned(),
            inputs,
        })
    }

    /// The values that it may ask for.
    pub fn inputs(&self) -> &BTreeSet<Input> {
        &self.inputs
    }

    /// Renders it with what is known; a known input of `None` does not exist.
    pub fn render(
        &self,
        known: &BTreeMap<Input, Option<KeyMaterial>>,
    ) -> Result<Outcome, TemplateError> {
        let record = Arc::new(Record {
            known: self
                .inputs
                .iter()
                .filter_map(|input| {
                    let value = known.get(input)?.clone();
                    let value = value.map(|value| Value::from_object(Text(value)));
                    Some((input.clone(), value))
                })
                .collect(),
            ..Record::default()
        });
        let mut output = Bounded::new();
        let result = self.run(&record, &mut output);

        let missing = record.missing();
        if !missing.is_empty() {
            return Ok(Outcome::Needs(missing));
        }
        result?;
        Ok(Outcome::Text(output.into_text(), record.used()))
    }

    fn run(&self, record: &Arc<Record>, output: &mut Bounded) -> Result<(), TemplateError> {
        let environment = environment(record);
        let lookup = |version| {
            Value::from_object(Lookup {
                record: Arc::clone(record),
                version,
            })
        };
        let context = context! {
            secrets => lookup(Version::Current),
            previous => lookup(Version::Previous),
        };
        environment
            .template_from_named_str("template", &self.text)
            .and_then(|template| template.render_captured_to(context, output).map(drop))
            .map_err(|error| TemplateError {
                line: line(&error),
                fault: match error.kind() {
                    ErrorKind::UndefinedError => Fault::Undefined,
                    ErrorKind::WriteFailure | ErrorKind::OutOfFuel => Fault::TooLarge,
                    ErrorKind::BadSerialization => Fault::NotText,
                    ErrorKind::CannotDeserialize => Fault::NotBase64,
                    _ => Fault::Failed,
                },
            })
    }
}

impl fmt::Debug for Template {
    /// Without the text: somebody may have written a value into it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Template")
            .field("bytes", &self.text.len())
            .field("inputs", &self.inputs)
            .finish()
    }
}

/// The longest template.
pub const MAX_TEMPLATE_BYTES: usize = 8192;
/// The longest result.
pub const MAX_OUTPUT_BYTES: usize = 64 * 1024;
/// How many bytes of secrets and of results of filters may go through one rendering.
pub const MAX_WORK_BYTES: usize = 4 * MAX_OUTPUT_BYTES;
/// How many words and signs one tag may have: the engine's stack grows with them.
pub const MAX_TAG_TOKENS: usize = 100;
/// How many statement tags (`{% … %}`) a template may have, for the same reason.
pub const MAX_TAGS: usize = 100;

/// A template within the limits needs less.
const FUEL: u64 = 100_000;
const FILTERS: [&str; 7] = [
    "b64decode",
    "b64encode",
    "json",
    "lower",
    "sha256",
    "upper",
    "urlencode",
];
const TESTS: [&str; 2] = ["defined", "undefined"];
/// RFC 3986, "unreserved".
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

fn syntax() -> SyntaxConfig {
    SyntaxConfig::builder()
        .keep_trailing_newline(true)
        .build()
        .expect("the default delimiters are distinct")
}

fn line(error: &Error) -> usize {
    error.line().unwrap_or(1)
}

/// Refuses what would make the engine's parser and compiler recurse deeply.
fn measure(text: &str) -> Result<(), TemplateError> {
    let (mut tags, mut words) = (0, 0);
    for token in tokenize(text, false, syntax()) {
        let (token, span) = token.map_err(|error| TemplateError {
            line: line(&error),
            fault: Fault::Syntax,
        })?;
        match token {
            Token::TemplateData(_) | Token::VariableStart => words = 0,
            Token::BlockStart => {
                tags += 1;
                words = 0;
            }
            _ => words += 1,
        }
        ensure!(
            tags <= MAX_TAGS && words <= MAX_TAG_TOKENS + 1,
            TemplateSnafu {
                line: span.start_line,
                fault: Fault::TooComplex
            }
        );
    }
    Ok(())
}

fn statements(all: &[Stmt<'_>], inputs: &mut BTreeSet<Input>) -> Result<(), TemplateError> {
    all.iter().try_for_each(|one| statement(one, inputs))
}

fn statement(stmt: &Stmt<'_>, inputs: &mut BTreeSet<Input>) -> Result<(), TemplateError> {
    let span = match stmt {
        Stmt::Template(template) => return statements(&template.children, inputs),
        Stmt::EmitRaw(_) => return Ok(()),
        Stmt::EmitExpr(emit) => return expression(&emit.expr, false, inputs),
        Stmt::IfCond(cond) => {
            expression(&cond.expr, false, inputs)?;
            statements(&cond.true_body, inputs)?;
            return statements(&cond.false_body, inputs);
        }
        Stmt::ForLoop(node) => node.span(),
        Stmt::WithBlock(node) => node.span(),
        Stmt::Set(node) => node.span(),
        Stmt::SetBlock(node) => node.span(),
        Stmt::AutoEscape(node) => node.span(),
        Stmt::FilterBlock(node) => node.span(),
        Stmt::Do(node) => node.span(),
        #[expect(unreachable_patterns, reason = "features of the engine add kinds")]
        _ => return refuse(1, Fault::NotAllowed),
    };
    refuse(span.start_line, Fault::NotAllowed)
}

/// Checks an expression; `in_json` is whether its value goes to `json` as it is.
fn expression(
    expr: &Expr<'_>,
    in_json: bool,
    inputs: &mut BTreeSet<Input>,
) -> Result<(), TemplateError> {
    let line = expr.span().start_line;
    match expr {
        Expr::Const(constant) => match constant.value.kind() {
            ValueKind::String | ValueKind::Number | ValueKind::Bool => Ok(()),
            ValueKind::None if in_json => Ok(()),
            _ => refuse(line, Fault::NotAllowed),
        },
        Expr::GetAttr(node) => input(&node.expr, Some(node.name), line, inputs),
        Expr::GetItem(node) => {
            let name = match &node.subscript_expr {
                Expr::Const(constant) => constant.value.as_str(),
                _ => None,
            };
            input(&node.expr, name, line, inputs)
        }
        Expr::UnaryOp(node) => {
            ensure!(
                matches!(node.op, UnaryOpKind::Not),
                TemplateSnafu {
                    line,
                    fault: Fault::NotAllowed
                }
            );
            expression(&node.expr, false, inputs)
        }
        Expr::BinOp(node) => {
            ensure!(
                matches!(
                    node.op,
                    BinOpKind::Concat | BinOpKind::ScAnd | BinOpKind::ScOr
                ),
                TemplateSnafu {
                    line,
                    fault: Fault::NotAllowed
                }
            );
            expression(&node.left, false, inputs)?;
            expression(&node.right, false, inputs)
        }
        Expr::IfExpr(node) => {
            expression(&node.test_expr, false, inputs)?;
            expression(&node.true_expr, in_json, inputs)?;
            // without an else the engine would print nothing in silence
            match &node.false_expr {
                Some(other) => expression(other, in_json, inputs),
                None => refuse(line, Fault::NotAllowed),
            }
        }
        Expr::Filter(node) => {
            ensure!(
                FILTERS.contains(&node.name) && node.args.is_empty(),
                TemplateSnafu {
                    line,
                    fault: Fault::Filter
                }
            );
            // without an operand it is the head of a filter block
            match &node.expr {
                Some(operand) => expression(operand, node.name == "json", inputs),
                None => refuse(line, Fault::NotAllowed),
            }
        }
        Expr::Test(node) => {
            ensure!(
                TESTS.contains(&node.name) && node.args.is_empty(),
                TemplateSnafu {
                    line,
                    fault: Fault::Test
                }
            );
            expression(&node.expr, false, inputs)
        }
        Expr::List(node) if in_json => node
            .items
            .iter()
            .try_for_each(|item| expression(item, true, inputs)),
        Expr::Map(node) if in_json => {
            // keys are written as text, so they may not be anything else
            for key in &node.keys {
                let text = matches!(key, Expr::Const(key) if key.value.as_str().is_some());
                ensure!(
                    text,
                    TemplateSnafu {
                        line,
                        fault: Fault::NotAllowed
                    }
                );
            }
            node.values
                .iter()
                .try_for_each(|value| expression(value, true, inputs))
        }
        Expr::Var(_) => refuse(line, Fault::Name),
        Expr::Compare(_)
        | Expr::Slice(_)
        | Expr::Call(_)
        | Expr::List(_)
        | Expr::Tuple(_)
        | Expr::Map(_) => refuse(line, Fault::NotAllowed),
    }
}

/// Notes what a lookup asks for, if it is one of a name that is spelt out.
fn input(
    base: &Expr<'_>,
    name: Option<&str>,
    line: u16,
    inputs: &mut BTreeSet<Input>,
) -> Result<(), TemplateError> {
    let version = match base {
        Expr::Var(var) if var.id == "secrets" => Version::Current,
        Expr::Var(var) if var.id == "previous" => Version::Previous,
        _ => return refuse(line, Fault::Name),
    };
    let Some(name) = name else {
        return refuse(line, Fault::Name);
    };
    ensure!(
        (1..=127).contains(&name.len())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'),
        TemplateSnafu {
            line,
            fault: Fault::SecretName
        }
    );
    inputs.insert(Input {
        secret: name.to_ascii_lowercase(),
        version,
    });
    Ok(())
}

fn refuse<T>(line: u16, fault: Fault) -> Result<T, TemplateError> {
    TemplateSnafu { line, fault }.fail()
}

/// An engine that knows what the language has and no more.
fn environment<'source>(record: &Arc<Record>) -> Environment<'source> {
    let mut environment = Environment::empty();
    environment.set_syntax(syntax());
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_recursion_limit(50);
    environment.set_fuel(Some(FUEL));
    environment.set_formatter(|out, _, value| {
        let text = text_of(value)?;
        out.write_str(&text).map_err(Error::from)
    });
    environment.add_test("defined", |value: &Value| !value.is_undefined());
    environment.add_test("undefined", |value: &Value| value.is_undefined());
    for name in FILTERS {
        let record = Arc::clone(record);
        environment.add_filter(name, move |_: &State<'_, '_>, value: &Value| {
            let mut output = Bounded::new();
            apply(name, value, &mut output)?;
            record.spend(output.bytes.len())?;
            Ok::<_, Error>(Value::from_object(Text(output.into_text())))
        });
    }
    environment
}

/// Performs a filter. Of an error only the kind goes further.
fn apply(filter: &str, value: &Value, output: &mut Bounded) -> Result<(), Error> {
    if filter == "json" {
        return json(value, output);
    }
    let text = text_of(value)?;
    match filter {
        "b64encode" => {
            // in pieces of whole groups, so that no text in between grows
            let mut piece = Zeroizing::new([0; 1024]);
            text.as_bytes().chunks(768).try_for_each(|chunk| {
                let length = STANDARD
                    .encode_slice(chunk, piece.as_mut_slice())
                    .map_err(io::Error::other)?;
                output.write_all(&piece[..length])
            })
        }
        "b64decode" => {
            let bytes = STANDARD
                .decode(text.as_bytes())
                .map_err(|_| fault(ErrorKind::CannotDeserialize))?;
            let bytes = Zeroizing::new(bytes);
            str::from_utf8(&bytes).map_err(|_| fault(ErrorKind::CannotDeserialize))?;
            output.write_all(&bytes)
        }
        "lower" => text
            .chars()
            .flat_map(char::to_lowercase)
            .try_for_each(|c| write!(output, "{c}")),
        "sha256" => Sha256::digest(text.as_bytes())
            .iter()
            .try_for_each(|byte| write!(output, "{byte:02x}")),
        "upper" => text
            .chars()
            .flat_map(char::to_uppercase)
            .try_for_each(|c| write!(output, "{c}")),
        "urlencode" => utf8_percent_encode(&text, RESERVED)
            .try_for_each(|piece| output.write_all(piece.as_bytes())),
        _ => return Err(fault(ErrorKind::UnknownFilter)),
    }
    .map_err(|_| fault(ErrorKind::WriteFailure))
}

/// Writes a value as JSON. Deep nesting is impossible: see [`MAX_TAG_TOKENS`].
fn json(value: &Value, output: &mut Bounded) -> Result<(), Error> {
    let full = |_| fault(ErrorKind::WriteFailure);
    match value.kind() {
        ValueKind::Undefined => Err(fault(ErrorKind::UndefinedError)),
        ValueKind::None => output.write_all(b"null").map_err(full),
        ValueKind::Bool | ValueKind::Number => {
            serde_json::to_writer(output, value).map_err(|_| fault(ErrorKind::WriteFailure))
        }
        ValueKind::Seq => {
            let mut before = b'[';
            for item in value.try_iter()? {
                output.write_all(&[before]).map_err(full)?;
                json(&item, output)?;
                before = b',';
            }
            let end: &[u8] = if before == b'[' { b"[]" } else { b"]" };
            output.write_all(end).map_err(full)
        }
        ValueKind::Map => {
            let mut before = b'{';
            for key in value.try_iter()? {
                output.write_all(&[before]).map_err(full)?;
                json(&key, output)?;
                output.write_all(b":").map_err(full)?;
                json(&value.get_item(&key)?, output)?;
                before = b',';
            }
            let end: &[u8] = if before == b'{' { b"{}" } else { b"}" };
            output.write_all(end).map_err(full)
        }
        _ => {
            let text = text_of(value)?;
            serde_json::to_writer(output, &text).map_err(|_| fault(ErrorKind::WriteFailure))
        }
    }
}

/// The text that a value is, or prints as.
fn text_of(value: &Value) -> Result<Cow<'_, str>, Error> {
    if let Some(text) = value.downcast_object_ref::<Text>() {
        return Ok(Cow::Borrowed(text.0.expose()));
    }
    match value.kind() {
        ValueKind::String => value
            .as_str()
            .map(Cow::Borrowed)
            .ok_or_else(|| fault(ErrorKind::BadSerialization)),
        ValueKind::Bool | ValueKind::Number => Ok(Cow::Owned(value.to_string())),
        ValueKind::Undefined => Err(fault(ErrorKind::UndefinedError)),
        _ => Err(fault(ErrorKind::BadSerialization)),
    }
}

fn fault(kind: ErrorKind) -> Error {
    Error::from(kind)
}

/// What one rendering knows, and what it was asked for.
#[derive(Default)]
struct Record {
    known: BTreeMap<Input, Option<Value>>,
    used: Mutex<BTreeSet<Input>>,
    spent: AtomicUsize,
}

impl Record {
    /// Counts bytes that go through the rendering, and ends it where they become too many.
    fn spend(&self, bytes: usize) -> Result<(), Error> {
        let before = self.spent.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > MAX_WORK_BYTES {
            return Err(fault(ErrorKind::WriteFailure));
        }
        Ok(())
    }

    fn used(&self) -> BTreeSet<Input> {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.clone()
    }

    fn missing(&self) -> BTreeSet<Input> {
        let mut used = self.used();
        used.retain(|input| !self.known.contains_key(input));
        used
    }
}

/// What `secrets` and `previous` are: they can be asked for a name, not for all of them.
struct Lookup {
    record: Arc<Record>,
    version: Version,
}

impl fmt::Debug for Lookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lookup(…)")
    }
}

impl Object for Lookup {
    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::NonEnumerable
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let input = Input {
            secret: key.as_str()?.to_ascii_lowercase(),
            version: self.version,
        };
        let found = self.record.known.get(&input).cloned();
        let mut used = self
            .record
            .used
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        used.insert(input);
        let Some(found) = found else {
            // stands in for what the caller will bring; this rendering is thrown away
            return Some(Value::from_object(Text(KeyMaterial::new(""))));
        };
        let value = found?;
        let length = text_of(&value).map_or(0, |text| text.len());
        Some(
            self.record
                .spend(length)
                .map_or_else(Value::from, |()| value),
        )
    }
}

/// A text that is overwritten in memory when dropped.
struct Text(KeyMaterial);

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Object for Text {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn is_true(self: &Arc<Self>) -> bool {
        !self.0.expose().is_empty()
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.expose())
    }
}

/// Where results are written; refuses more than its limit.
struct Bounded {
    // Grows by doubling into a new one, so that none is left behind unwiped.
    bytes: Zeroizing<Vec<u8>>,
}

impl Bounded {
    fn new() -> Self {
        Self {
            bytes: Zeroizing::new(Vec::with_capacity(256)),
        }
    }

    fn into_text(self) -> KeyMaterial {
        KeyMaterial::new(str::from_utf8(&self.bytes).expect("only text was written"))
    }
}

impl Write for Bounded {
    fn write(&mut self, more: &[u8]) -> io::Result<usize> {
        let length = self.bytes.len() + more.len();
        if length > MAX_OUTPUT_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        if length > self.bytes.capacity() {
            let mut larger = Vec::with_capacity(length.next_power_of_two());
            larger.extend_from_slice(&self.bytes);
            self.bytes = Zeroizing::new(larger);
        }
        self.bytes.extend_from_slice(more);
        Ok(more.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Instant};

    use proptest::prelude::*;

    use super::*;

    const PLANTED: &str = "pL4nt3d \"vålue\"/?";

    fn input(secret: &str, version: Version) -> Input {
        Input {
            secret: secret.to_owned(),
            version,
        }
    }

    /// `a` and `b-c` are there, `gone` is not; `a` has a previous value.
    fn known() -> BTreeMap<Input, Option<KeyMaterial>> {
        let current = |secret: &str| input(secret, Version::Current);
        let some = |text: &str| Some(KeyMaterial::new(text));
        BTreeMap::from([
            (current("a"), some(PLANTED)),
            (current("b-c"), some("Plain-1")),
            (current("empty"), some("")),
            (current("coded"), some("cDRzcw==")),
            (current("binary"), some("/w==")),
            (current("gone"), None),
            (input("a", Version::Previous), some("old")),
            (input("b-c", Version::Previous), None),
        ])
    }

    fn render(text: &str) -> Result<String, Fault> {
        let outcome = Template::parse(text).and_then(|template| template.render(&known()));
        match outcome {
            Ok(Outcome::Text(text, _)) => Ok(text.expose().to_owned()),
            Ok(Outcome::Needs(_)) => panic!("everything is known"),
            Err(error) => Err(error.fault),
        }
    }

    #[test]
    fn renders_what_the_language_has() {
        for (template, expected) in [
            ("", ""),
            ("plain {x} $ %\n", "plain {x} $ %\n"),
            ("{{ secrets['b-c'] }}", "Plain-1"),
            ("{{ secrets[\"B-C\"] }}\n\n", "Plain-1\n\n"),
            ("{{ secrets.a }}", PLANTED),
            ("{{ secrets.A }}", PLANTED),
            ("{{ previous.a }}", "old"),
            (
                "{{ secrets.a | urlencode }}",
                "pL4nt3d%20%22v%C3%A5lue%22%2F%3F",
            ),
            (
                "{{ 'aZ09-._~ /?#[]@!$&()*+,;=%' | urlencode }}",
                "aZ09-._~%20%2F%3F%23%5B%5D%40%21%24%26%28%29%2A%2B%2C%3B%3D%25",
            ),
            ("{{ secrets['b-c'] | b64encode }}", "UGxhaW4tMQ=="),
            ("{{ secrets['b-c'] | b64encode | b64decode }}", "Plain-1"),
            ("{{ secrets.coded | b64decode }}", "p4ss"),
            (
                "{{ (secrets['b-c'] ~ ':' ~ previous.a) | b64encode }}",
                "UGxhaW4tMTpvbGQ=",
            ),
            (
                "{{ 'abc' | sha256 }}",
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            ),
            ("{{ 'äB' | upper }}{{ 'ÄB' | lower }}", "ÄBäb"),
            ("{{ secrets.a | json }}", "\"pL4nt3d \\\"vålue\\\"/?\""),
            (
                "{{ {'z': [1, true, none, 1.5], 'a': {'u': secrets['b-c'] | upper}, 'e': [], 'm': {}} | json }}",
                r#"{"a":{"u":"PLAIN-1"},"e":[],"m":{},"z":[1,true,null,1.5]}"#,
            ),
            ("{{ 5 }}{{ true }}{{ 'x' }}", "5Truex"),
            (
                "{% if secrets.gone is defined %}x{% elif previous.a is defined %}y{% else %}z{% endif %}",
                "y",
            ),
            (
                "{% if secrets.gone is undefined and not secrets.empty %}x{% endif %}",
                "x",
            ),
            ("{{ secrets.empty or 'default' }}", "default"),
            (
                "{{ previous['b-c'] if previous['b-c'] is defined else secrets['b-c'] }}",
                "Plain-1",
            ),
            (
                "{# no #}a{%- if true -%} b {%- endif %}{% raw %}{{ x }}{% endraw %}",
                "ab{{ x }}",
            ),
            (
                "{{ secrets.a is defined }}{{ 1 is undefined ~ true }}",
                "TrueFalseTrue",
            ),
        ] {
            assert_eq!(render(template).as_deref(), Ok(expected), "{template}");
        }
    }

    #[test]
    fn refuses_what_the_language_has_not() {
        use Fault::{Filter, Name, NotAllowed, SecretName, Syntax, Test, Undefined};
        for (template, expected) in [
            ("{{ secrets.a", Syntax),
            ("{{ }}", Syntax),
            ("{% if true %}", Syntax),
            ("{% include 'x' %}", Syntax),
            ("{% import 'x' as y %}", Syntax),
            ("{% from 'x' import y %}", Syntax),
            ("{% extends 'x' %}", Syntax),
            ("{% block x %}{% endblock %}", Syntax),
            ("{% macro m() %}{{ m() }}{% endmacro %}", Syntax),
            ("{% call m() %}{% endcall %}", Syntax),
            ("{% break %}", Syntax),
            ("{% for x in secrets %}{{ x }}{% endfor %}", NotAllowed),
            ("{% for x in [1] %}{% endfor %}", NotAllowed),
            ("{% set x = 1 %}", NotAllowed),
            ("{% set secrets = {} %}", NotAllowed),
            ("{% set x %}y{% endset %}", NotAllowed),
            ("{% with x = 1 %}{% endwith %}", NotAllowed),
            ("{% filter upper %}x{% endfilter %}", NotAllowed),
            ("{% autoescape true %}{% endautoescape %}", NotAllowed),
            ("{% do secrets.a() %}", NotAllowed),
            (
                "{% if true %}{% if true %}{% set x = 1 %}{% endif %}{% endif %}",
                NotAllowed,
            ),
            ("{{ secrets }}", Name),
            ("{{ secrets | json }}", Name),
            ("{{ [secrets] | json }}", Name),
            ("{{ secrets is defined }}", Name),
            ("{{ secrets[secrets.a] }}", Name),
            ("{{ secrets['a' ~ 'b'] }}", Name),
            ("{{ secrets[0] }}", Name),
            ("{{ secrets.a.b }}", Name),
            ("{{ secrets.a[0] }}", Name),
            ("{{ other.a }}", Name),
            ("{{ loop }}{{ self }}", Name),
            ("{{ secrets.a_b }}", SecretName),
            ("{{ secrets[''] }}", SecretName),
            ("{{ secrets['ü'] }}", SecretName),
            ("{{ secrets.a | default('x') }}", Filter),
            ("{{ secrets.a | upper(1) }}", Filter),
            ("{{ secrets.a | upper(x=1) }}", Filter),
            ("{{ secrets.a is string }}", Test),
            ("{{ secrets.a is defined(1) }}", Test),
            ("{{ secrets.a() }}", NotAllowed),
            ("{{ secrets.items() }}", NotAllowed),
            ("{{ range(3) }}", NotAllowed),
            ("{{ secrets.a == 'x' }}", NotAllowed),
            ("{{ 'a' in secrets }}", NotAllowed),
            ("{{ 1 < 2 }}", NotAllowed),
            ("{{ secrets.a[1:2] }}", NotAllowed),
            ("{{ 1 + 1 }}", NotAllowed),
            ("{{ 'x' * 3 }}", NotAllowed),
            ("{{ -1 }}", NotAllowed),
            ("{{ none }}", NotAllowed),
            ("{{ [1] }}", NotAllowed),
            ("{{ (1, 2) | json }}", NotAllowed),
            ("{{ {'a': 1} }}", NotAllowed),
            ("{{ [1] | upper }}", NotAllowed),
            ("{{ ([1] or [2]) | json }}", NotAllowed),
            ("{{ {secrets.a: 1} | json }}", NotAllowed),
            ("{{ {1: 1} | json }}", NotAllowed),
            ("{{ secrets.a if true }}", NotAllowed),
            ("{{ secrets.gone }}", Undefined),
            ("{{ previous['b-c'] }}", Undefined),
            ("{{ secrets.gone | upper }}", Undefined),
            ("{{ secrets.gone | json }}", Undefined),
            ("{{ [secrets.gone] | json }}", Undefined),
            ("{{ 'x' ~ secrets.gone }}", Undefined),
            ("{% if secrets.gone %}{% endif %}", Undefined),
            ("{{ secrets.a | b64decode }}", Fault::NotBase64),
            ("{{ secrets.binary | b64decode }}", Fault::NotBase64),
        ] {
            assert_eq!(render(template), Err(expected), "{template}");
        }
    }

    /// All that the engine could have, from its documentation.
    const ENGINE_FILTERS: &str = "abs attr batch bool capitalize chain default d dictsort escape e \
        filesizeformat first float format forceescape groupby indent int items join last length \
        count lines list map max min pprint random reject rejectattr replace reverse round safe \
        select selectattr slice sort split string striptags sum title tojson trim truncate unique \
        upper urlize wordcount wordwrap xmlattr zip datetimeformat dateformat timeformat \
        pluralize filter";
    const ENGINE_TESTS: &str = "boolean callable containing defined divisibleby endingwith eq \
        equalto escaped even false filter float ge gt greaterthan in integer iterable le lt \
        lessthan lower mapping ne none number odd safe sameas sequence startingwith string test \
        true undefined upper";
    const ENGINE_FUNCTIONS: &str = "range dict debug namespace cycler joiner lipsum super caller \
        loop self now url_for random randrange raise_exception context";

    #[test]
    fn nothing_of_the_engine_is_there_but_what_the_language_names() {
        let tried = |names: &str, template: &dyn Fn(&str) -> String| -> Vec<String> {
            names
                .split_whitespace()
                .chain(FILTERS)
                .chain(TESTS)
                .filter(|name| render(&template(name)).is_ok())
                .map(str::to_owned)
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect()
        };
        let filters = tried(ENGINE_FILTERS, &|name| {
            format!("{{{{ secrets.coded | {name} }}}}")
        });
        assert_eq!(filters, FILTERS);
        let tests = tried(ENGINE_TESTS, &|name| {
            format!("{{{{ secrets.coded is {name} }}}}")
        });
        assert_eq!(tests, TESTS);
        for template in [
            "{{ @ }}",
            "{{ @() }}",
            "{{ @(3) }}",
            "{{ @ | json }}",
            "{{ secrets.a.@() }}",
        ] {
            let none = tried(ENGINE_FUNCTIONS, &|name| template.replace('@', name));
            assert!(none.is_empty(), "{none:?}");
        }
        // also beneath the check of the language, where the engine itself looks names up
        let environment = environment(&Arc::default());
        assert_eq!(environment.globals().count(), 0);
        for name in ENGINE_FILTERS
            .split_whitespace()
            .filter(|name| !FILTERS.contains(name))
        {
            assert!(
                environment
                    .render_str(&format!("{{{{ 'x' | {name} }}}}"), ())
                    .is_err()
            );
        }
        for name in ENGINE_TESTS
            .split_whitespace()
            .filter(|name| !TESTS.contains(name))
        {
            let template = format!("{{% if 'x' is {name} %}}{{% endif %}}");
            assert!(environment.render_str(&template, ()).is_err(), "{name}");
        }
    }

    #[test]
    fn asks_for_what_it_does_not_know_until_it_knows_enough() {
        let template = Template::parse(
            "{% if secrets.mode is defined %}{{ secrets.Mode | b64decode }}{{ previous.x }}\
             {% else %}{{ secrets.other }}{% endif %}",
        )
        .unwrap();
        let (mode, x, other) = (
            input("mode", Version::Current),
            input("x", Version::Previous),
            input("other", Version::Current),
        );
        // a stand-in is no base64 of anything, yet no error
        let mut known = known();
        let needs = |known: &_| match template.render(known) {
            Ok(Outcome::Needs(needs)) => needs,
            other => panic!("{other:?}"),
        };
        assert!(needs(&known).contains(&mode));
        known.insert(mode.clone(), None);
        assert_eq!(needs(&known), BTreeSet::from([other.clone()]));
        known.insert(other.clone(), Some(KeyMaterial::new("value")));
        assert_eq!(
            template.render(&known),
            Ok(Outcome::Text(
                KeyMaterial::new("value"),
                BTreeSet::from([mode.clone(), other])
            ))
        );
        known.insert(mode.clone(), Some(KeyMaterial::new("bm90")));
        assert_eq!(needs(&known), BTreeSet::from([x.clone()]));
        known.insert(x, None);
        assert_eq!(template.render(&known).unwrap_err().fault, Fault::Undefined);
    }

    #[test]
    fn errors_in_a_round_with_missing_inputs_are_not_reported() {
        let template = |text| Template::parse(text).unwrap().render(&known());
        for text in [
            "{{ secrets.new }}{{ secrets.gone }}",
            "{{ secrets.new | b64decode }}{{ secrets.a | b64decode }}",
            "{{ secrets.new ~ secrets.gone }}",
        ] {
            let needs = BTreeSet::from([input("new", Version::Current)]);
            assert_eq!(template(text), Ok(Outcome::Needs(needs)), "{text}");
        }
    }

    #[test]
    fn errors_say_where_and_nothing_of_values() {
        let lines = "1\n2\n{{ secrets.gone }}";
        let error = Template::parse(lines)
            .unwrap()
            .render(&known())
            .unwrap_err();
        assert_eq!((error.line, error.fault), (3, Fault::Undefined));
        let error = Template::parse("\n{% set x = 'planted' %}").unwrap_err();
        assert_eq!((error.line, error.fault), (2, Fault::NotAllowed));
        let error = Template::parse("\n\n{{ 'planted }}").unwrap_err();
        assert_eq!((error.line, error.fault), (3, Fault::Syntax));

        let mut seen = BTreeSet::new();
        for text in [
            "{{ secrets.a | b64decode }}",
            "{{ secrets.a ~ secrets.gone }}",
            "{{ (secrets.a | upper) ~ secrets.gone }}",
            "{{ [secrets.a, secrets.gone] | json }}",
            "{{ {'pL4nt3d': secrets.a, 'x': secrets.gone} | json }}",
            "{{ secrets.a | json }}{{ secrets.gone }}",
            "{{ 'pL4nt3d' }}{{ secrets.gone }}",
            "{{ 'pL4nt3d' | nothing }}",
            "{{ 'pL4nt3d' is nothing }}",
            "{{ secrets['pL4nt3d_'] }}",
            "{{ pL4nt3d }}",
            "{{ pL4nt3d 5 }}",
            "{% pL4nt3d %}",
            "{{ 'pL4nt3d' + 5 }}",
            "{{ 'pL4nt3d }}",
        ] {
            let parsed = Template::parse(text);
            if let Ok(template) = &parsed {
                assert!(!format!("{template:?}").contains("pL4nt3d"));
            }
            let error = parsed
                .and_then(|parsed| parsed.render(&known()))
                .unwrap_err();
            assert!(std::error::Error::source(&error).is_none());
            let shown = format!("{error} {error:?} {error:#?}");
            assert!(!shown.to_lowercase().contains("pl4nt3d"), "{shown}");
            seen.insert(format!("{:?}", error.fault));
        }
        assert_eq!(seen.len(), 8, "{seen:?}");
        for text in ["{{ secrets.a }}", "pL4nt3d"] {
            let template = Template::parse(text).unwrap();
            assert!(!format!("{template:?}").contains("pL4nt3d"));
            assert!(!format!("{:?}", template.render(&known())).contains("pL4nt3d"));
        }
        let text = Text(KeyMaterial::new(PLANTED));
        assert!(!format!("{text:?}").contains("pL4nt3d"));
    }

    #[test]
    fn limits_hold_to_the_byte() {
        assert!(Template::parse(&"x".repeat(MAX_TEMPLATE_BYTES)).is_ok());
        let long = Template::parse(&"x".repeat(MAX_TEMPLATE_BYTES + 1)).unwrap_err();
        assert_eq!(long.fault, Fault::TooLong);

        let render = |text: &str, bytes: usize| {
            let known = BTreeMap::from([(
                input("a", Version::Current),
                Some(KeyMaterial::new("x".repeat(bytes))),
            )]);
            match Template::parse(text).unwrap().render(&known) {
                Ok(Outcome::Text(text, _)) => Ok(text.expose().len()),
                Ok(Outcome::Needs(_)) => panic!("all is known"),
                Err(error) => Err(error.fault),
            }
        };
        let large = Err(Fault::TooLarge);
        assert_eq!(
            render("{{ secrets.a }}", MAX_OUTPUT_BYTES),
            Ok(MAX_OUTPUT_BYTES)
        );
        assert_eq!(render("{{ secrets.a }}", MAX_OUTPUT_BYTES + 1), large);
        assert_eq!(render("{{ secrets.a }}.", MAX_OUTPUT_BYTES), large);
        assert_eq!(
            render("{{ secrets.a | b64encode }}", 49152),
            Ok(MAX_OUTPUT_BYTES)
        );
        assert_eq!(render("{{ secrets.a | b64encode }}", 49153), large);
        assert_eq!(
            render("{{ secrets.a | sha256 }}", MAX_WORK_BYTES - 64),
            Ok(64)
        );
        assert_eq!(
            render("{{ secrets.a | sha256 }}", MAX_WORK_BYTES + 1),
            large
        );
        assert_eq!(
            render("{{ secrets.a | json }}", MAX_OUTPUT_BYTES - 2),
            Ok(MAX_OUTPUT_BYTES)
        );
        assert_eq!(
            render("{{ secrets.a | json }}", MAX_OUTPUT_BYTES - 1),
            large
        );
        let twice = "{{ (secrets.a ~ secrets.a) | sha256 }}";
        assert_eq!(render(twice, MAX_WORK_BYTES / 2 - 32), Ok(64));
        assert_eq!(render(twice, MAX_WORK_BYTES / 2), large);
    }

    /// Runs on a stack that is half of what a thread of the runtime has.
    fn on_a_small_stack(text: String) {
        let before = Instant::now();
        let known = BTreeMap::from([(
            input("a", Version::Current),
            Some(KeyMaterial::new("%\"".repeat(20_000))),
        )]);
        thread::Builder::new()
            .stack_size(1024 * 1024)
            .spawn(move || {
                let _ = Template::parse(&text).and_then(|template| template.render(&known));
            })
            .unwrap()
            .join()
            .unwrap();
        assert!(
            before.elapsed().as_secs() < 5,
            "took {:?}",
            before.elapsed()
        );
    }

    #[test]
    fn attacks_on_time_memory_and_stack_fail() {
        let fill = |before: &str, part: &str, after: &str| {
            let room = MAX_TEMPLATE_BYTES - before.len() - after.len();
            format!("{before}{}{after}", part.repeat(room / part.len()))
        };
        let pairs = |open: &str, close: &str, times: usize| {
            format!("{}{}", open.repeat(times), close.repeat(times))
        };
        for text in [
            "{{ 'x' * 100000000 }}".to_owned(),
            "{{ [[1] * 100000000] * 100000000 }}".to_owned(),
            "{{ 9 ** 99999999 }}".to_owned(),
            fill("{% set a = 'x' %}", "{% set a = a ~ a %}", "{{ a }}"),
            pairs("{% for x in [1,2,3,4,5,6,7,8,9] %}", "{% endfor %}", 170),
            "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}".to_owned(),
            pairs("{% if true %}", "{% endif %}", 340),
            pairs("{% if true %}", "{% endif %}", 50),
            fill("{% if true %}", "{% elif true %}", "{% endif %}"),
            format!(
                "{{% if false %}}{}{{% endif %}}",
                "{% elif false %}".repeat(97)
            ),
            fill("{{ ", "(", " }}"),
            format!("{{{{ {} }}}}", pairs("(", ")", 49)),
            format!("{{{{ {} | json }}}}", pairs("[", "]", 48)),
            fill("{{ ", "[", " }}"),
            fill("{{ ", "{'a':", " }}"),
            fill("{{ ", "not ", "true }}"),
            format!("{{{{ {} true }}}}", "not ".repeat(98)),
            fill("{{ ", "-", "1 }}"),
            fill("{{ 'x'", "~'x'", " }}"),
            fill("{{ secrets.a", "~secrets.a", " }}"),
            format!("{{{{ (secrets.a{}) | sha256 }}}}", "~secrets.a".repeat(23)),
            fill("{{ 'x'", "|json", " }}"),
            format!("{{{{ secrets.a{} }}}}", "|json".repeat(48)),
            format!("{{{{ secrets.a{} }}}}", "|urlencode".repeat(48)),
            format!("{{{{ 'x'{} }}}}", "|b64encode".repeat(48)),
            fill("{{ secrets", ".a", " }}"),
            fill("{{ secrets", "['a']", " }}"),
            fill("{{ 1", " if 1 else 1", " }}"),
            fill("{{ 1", " is defined", " }}"),
            fill("{{ ", "9", " }}"),
            fill("{{ '", "x", "'|upper }}"),
            fill("", "{{ secrets.a | json | json | b64encode | sha256 }}", ""),
            fill("", "{{ 'x'|b64encode|b64encode|b64encode }}", ""),
            fill("", "{{", ""),
            fill("", "{%", ""),
            fill("", "{#", ""),
            fill("", "{% raw %}", ""),
        ] {
            on_a_small_stack(text);
        }
    }

    /// Texts that look like templates: pieces of the syntax in any order.
    fn pieces() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "{{ ",
            " }}",
            "{% ",
            " %}",
            "{#",
            "#}",
            "{%- ",
            " -%}",
            "if ",
            "elif ",
            "else",
            "endif",
            "secrets",
            "previous",
            ".a",
            "['b-c']",
            "[",
            "]",
            "(",
            ")",
            "{",
            "}",
            "'",
            "\"",
            "'x'",
            " | ",
            "b64encode",
            "b64decode",
            "json",
            "urlencode",
            "sha256",
            "upper",
            "lower",
            " is ",
            "defined",
            "undefined",
            " ~ ",
            " and ",
            " or ",
            "not ",
            ",",
            ":",
            "5",
            "1e9",
            "true",
            "none",
            "set x = ",
            "for x in ",
            "raw",
            "endraw",
            "\n",
            "é",
            "\u{0}",
            " ",
            "*",
        ]);
        prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
    }

    /// Expressions of the language, and of a little more.
    fn expressions() -> impl Strategy<Value = String> {
        let leaf = prop::sample::select(vec![
            "secrets.a",
            "secrets['b-c']",
            "secrets.gone",
            "secrets.new",
            "previous.a",
            "'x'",
            "7",
            "true",
            "none",
            "secrets",
            "secrets.empty",
        ])
        .prop_map(str::to_owned);
        leaf.prop_recursive(5, 40, 3, |inner| {
            let filter = prop::sample::select(FILTERS.to_vec());
            prop_oneof![
                (inner.clone(), filter).prop_map(|(of, by)| format!("({of}) | {by}")),
                (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) ~ ({b})")),
                (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) or ({b})")),
                (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("[{a}, {b}] | json")),
                (inner.clone(), inner.clone())
                    .prop_map(|(a, b)| format!("{{'k': {a}, 'l': [{b}]}} | json")),
                (inner.clone(), inner.clone())
                    .prop_map(|(a, b)| format!("({a}) if ({b}) is defined else ({a})")),
                inner.prop_map(|a| format!("not ({a})")),
            ]
        })
    }

    /// Renders until nothing is missing; no round may ask for what it was given.
    fn settle(text: &str) {
        let Ok(template) = Template::parse(text) else {
            return;
        };
        let mut known = BTreeMap::new();
        for _ in 0..20 {
            match template.render(&known) {
                Ok(Outcome::Needs(needs)) => {
                    assert!(!needs.is_empty());
                    for input in needs {
                        assert!(template.inputs.contains(&input));
                        let value = self::known().remove(&input).flatten();
                        assert!(known.insert(input, value).is_none());
                    }
                }
                Ok(Outcome::Text(text, used)) => {
                    assert!(text.expose().len() <= MAX_OUTPUT_BYTES);
                    assert!(used.iter().all(|input| known.contains_key(input)));
                    return;
                }
                Err(error) => {
                    assert!(error.line >= 1 && error.line <= text.lines().count().max(1) + 1);
                    assert!(!format!("{error:?}{error}").contains("pL4nt3d"));
                    return;
                }
            }
        }
        panic!("never settles: {text}");
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_renders(text in any::<String>()) {
            settle(&text);
        }

        #[test]
        fn any_pieces_are_refused_or_render(text in pieces()) {
            settle(&text);
        }

        #[test]
        fn any_expression_is_refused_or_renders(
            one in expressions(), two in expressions(),
        ) {
            settle(&format!("{{% if {one} %}}{{{{ {two} }}}}{{% else %}}{{{{ {one} }}}}{{% endif %}}"));
        }

        #[test]
        fn filters_do_what_they_say(text in any::<String>()) {
            let known = BTreeMap::from([(
                input("a", Version::Current),
                Some(KeyMaterial::new(text.clone())),
            )]);
            let by = |filter: &str| {
                let template = format!("{{{{ secrets.a | {filter} }}}}");
                match Template::parse(&template).unwrap().render(&known).unwrap() {
                    Outcome::Text(text, _) => text.expose().to_owned(),
                    Outcome::Needs(_) => panic!("all is known"),
                }
            };
            prop_assert_eq!(by("b64encode"), STANDARD.encode(&text));
            prop_assert_eq!(by("b64encode | b64decode"), text.clone());
            prop_assert_eq!(by("json"), serde_json::to_string(&text).unwrap());
            let encoded = by("urlencode");
            prop_assert!(encoded.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%".contains(&byte)));
            let decoded = percent_encoding::percent_decode_str(&encoded).decode_utf8().unwrap();
            prop_assert_eq!(decoded, text);
        }
    }
}
