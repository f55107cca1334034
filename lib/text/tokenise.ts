/** Rows of text on their way through the tokenizer. */
/** Rows with the texts that the tokenizer reads of each; the last slice says what ended it too early. */
interface Slice<Row> {
  rows: Row[];
  texts: string[][];
  failure?: { cause: unknown };
}

// Rows per call of the tokenizer: enough to fill the cores, few enough for the memory of what it returns.
const SLICE = 16;

/**
 * Rows with the ids of their texts, in order. While the tokenizer reads one slice, the one before it is used and the next
 * is read and rendered. When a row fails, those before it come first: they may fail too.
 */
export async function* tokenise<Row>(
  rows: Iterable<Row> | AsyncIterable<Row>,
  render: (row: Row) => string[],
  encode: (texts: string[]) => Promise<number[][]>,
): AsyncGenerator<{ row: Row; ids: number[][] }> {
  let before: { slice: Slice<Row>; ids: Promise<number[][]> } | undefined;
  for await (const slice of slicesOf(rows, render)) {
    const texts = slice.texts.flat();
    const ids = texts.length > 0 ? encode(texts) : Promise.resolve([]);
    ids.catch(() => {}); // awaited below, unless something before it ends everything
    if (before) yield* spread(before.slice, await before.ids);
    before = { slice, ids };
  }
  if (before) yield* spread(before.slice, await before.ids);
  if (before?.slice.failure) throw before.slice.failure.cause;
}

function* spread<Row>({ rows, texts }: Slice<Row>, ids: number[][]) {
  let next = 0;
  for (const [i, row] of rows.entries()) {
    const end = next + texts[i]!.length;
    yield { row, ids: ids.slice(next, end) };
    next = end;
  }
}

async function* slicesOf<Row>(
  rows: Iterable<Row> | AsyncIterable<Row>,
  render: (row: Row) => string[],
): AsyncGenerator<Slice<Row>> {
  let slice: Slice<Row> = { rows: [], texts: [] };
  try {
    for await (const row of rows) {
      slice.texts.push(render(row));
      slice.rows.push(row);
      if (slice.rows.length < SLICE) continue;
      yield slice;
      slice = { rows: [], texts: [] };
    }
  } catch (cause) {
    slice.failure = { cause };
  }
  yield slice;
}
