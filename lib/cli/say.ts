/** A line of words for people, on standard error. */
export const say = (line: string): void => {
  process.stderr.write(`${line}\n`);
};
