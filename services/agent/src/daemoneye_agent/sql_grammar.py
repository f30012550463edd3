"""What a query may be made of: the node types of sqlglot and the functions of SQLite we allow.

Invariant: both are allow-lists. A node type of a newer sqlglot or a function of a newer SQLite is
refused until somebody adds it here on purpose.
"""

from sqlglot import exp

__all__ = ["FUNCTIONS", "NODES", "OPERATOR_FUNCTIONS", "TABLE_FUNCTIONS"]

_SCALARS = """abs char coalesce concat concat_ws date datetime glob hex if ifnull iif instr
    julianday length like likelihood likely lower ltrim max min nullif octet_length quote regexp replace round
    rtrim sign strftime substr substring time timediff trim typeof unhex unicode unixepoch unlikely
    upper"""
_MATH = """acos asin atan atan2 ceil ceiling cos degrees exp floor ln log log10 log2 mod pi pow
    power radians sin sqrt tan trunc"""
_JSON = """json json_array json_array_length json_error_position json_extract json_object json_quote
    json_type json_valid"""
_AGGREGATES = """avg count group_concat json_group_array json_group_object string_agg sum total"""
_WINDOW = """cume_dist dense_rank first_value lag last_value lead nth_value ntile percent_rank rank
    row_number"""

FUNCTIONS = frozenset(f"{_SCALARS} {_MATH} {_JSON} {_AGGREGATES} {_WINDOW}".split())
"""Functions a query may call by name. No ``printf``, ``zeroblob`` or ``randomblob``: they make much
out of little or differ from run to run. No ``load_extension``, ``readfile``, ``writefile``: they
leave the database."""

OPERATOR_FUNCTIONS = frozenset(("->", "->>", "current_date", "current_time", "current_timestamp"))
"""What SQLite calls a function although it is written as an operator or a keyword."""

_JSON_COLUMNS = ("key", "value", "type", "atom", "id", "parent", "fullkey", "path")
TABLE_FUNCTIONS: dict[str, tuple[str, ...]] = {
    "json_each": _JSON_COLUMNS,
    "json_tree": _JSON_COLUMNS,
}
"""Functions that stand in FROM, with their columns."""

_STRUCTURE = (
    exp.Alias,
    exp.CTE,
    exp.Column,
    exp.Distinct,
    exp.Except,
    exp.Filter,
    exp.From,
    exp.Group,
    exp.Having,
    exp.Identifier,
    exp.Intersect,
    exp.Join,
    exp.Limit,
    exp.Offset,
    exp.Order,
    exp.Ordered,
    exp.Paren,
    exp.Select,
    exp.Star,
    exp.Subquery,
    exp.Table,
    exp.TableAlias,
    exp.Tuple,
    exp.Union,
    exp.Var,
    exp.Where,
    exp.Window,
    exp.WindowSpec,
    exp.With,
)

_VALUES = (
    exp.Boolean,
    exp.CurrentDate,
    exp.CurrentTime,
    exp.CurrentTimestamp,
    exp.DataType,
    exp.HexString,
    exp.Literal,
    exp.Null,
    exp.Placeholder,
)

_OPERATORS = (
    exp.Add,
    exp.And,
    exp.Between,
    exp.BitwiseAnd,
    exp.BitwiseLeftShift,
    exp.BitwiseNot,
    exp.BitwiseOr,
    exp.BitwiseRightShift,
    exp.Case,
    exp.Cast,
    exp.Collate,
    exp.DPipe,
    exp.Div,
    exp.EQ,
    exp.Escape,
    exp.Exists,
    exp.GT,
    exp.GTE,
    exp.Glob,
    exp.In,
    exp.Is,
    exp.LT,
    exp.LTE,
    exp.Like,
    exp.Mod,
    exp.Mul,
    exp.NEQ,
    exp.Neg,
    exp.Not,
    exp.NullSafeEQ,
    exp.NullSafeNEQ,
    exp.Or,
    exp.RegexpLike,
    exp.Sub,
)

# What the names of FUNCTIONS become in the tree; every other function is exp.Anonymous.
_CALLS = (
    exp.Abs,
    exp.Acos,
    exp.Anonymous,
    exp.Asin,
    exp.Atan,
    exp.Atan2,
    exp.Avg,
    exp.Ceil,
    exp.Chr,
    exp.Coalesce,
    exp.Concat,
    exp.ConcatWs,
    exp.Cos,
    exp.Count,
    exp.CumeDist,
    exp.Date,
    exp.Datetime,
    exp.Degrees,
    exp.DenseRank,
    exp.Exp,
    exp.FirstValue,
    exp.Floor,
    exp.Greatest,
    exp.GroupConcat,
    exp.Hex,
    exp.If,
    exp.JSONArray,
    exp.JSONArrayAgg,
    exp.JSONExtract,
    exp.JSONExtractScalar,
    exp.JSONKeyValue,
    exp.JSONObject,
    exp.JSONObjectAgg,
    exp.JSONPath,
    exp.JSONPathKey,
    exp.JSONPathRoot,
    exp.JSONPathSubscript,
    exp.JSONType,
    exp.Lag,
    exp.LastValue,
    exp.Lead,
    exp.Least,
    exp.Length,
    exp.Ln,
    exp.Log,
    exp.Lower,
    exp.Max,
    exp.Min,
    exp.NthValue,
    exp.Ntile,
    exp.Nullif,
    exp.PercentRank,
    exp.Pi,
    exp.Pow,
    exp.Radians,
    exp.Rank,
    exp.Replace,
    exp.Round,
    exp.RowNumber,
    exp.Sign,
    exp.Sin,
    exp.Sqrt,
    exp.StrPosition,
    exp.Substring,
    exp.Sum,
    exp.Tan,
    exp.Time,
    exp.TimeToStr,
    exp.Trim,
    exp.Trunc,
    exp.TsOrDsToDate,
    exp.TsOrDsToTimestamp,
    exp.Typeof,
    exp.Unhex,
    exp.Unicode,
    exp.Upper,
)

NODES: frozenset[type] = frozenset(_STRUCTURE + _VALUES + _OPERATORS + _CALLS)
"""Every node type a query may contain."""
