/** Writes to standard output and waits for it; a reader that went away is an error (EPIPE), not a crash. */
export function writeOut(text: string): Promise<void> {
  return new Promise((resolve, reject) => {
    process.stdout.once('error', reject).write(text, (error) => {
      process.stdout.removeListener('error', reject);
      if (!error) return resolve();
      // The event follows the callback.
      process.stdout.once('error', () => {});
      reject(error);
    });
  });
}
