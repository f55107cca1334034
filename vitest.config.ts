import { defineConfig } from 'vitest/config';
import { BaseSequencer, type TestSpecification } from 'vitest/node';

/** In the order data flows, so that the first failure is the likely cause of the others. */
class ByNumber extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    return [...files].sort((a, b) => a.moduleId.localeCompare(b.moduleId));
  }
}

export default defineConfig({
  test: {
    // `npm run torture`: what takes minutes, and breaks things.
    include: process.env.TORTURE
      ? ['test/torture/*.test.ts', 'test/24.*.test.ts', 'test/47.store.test.ts', 'test/82.native.test.ts']
      : ['test/*.test.ts'],
    sequence: { sequencer: ByNumber },
    // Every file computes on all cores: side by side they would only wait for each other.
    fileParallelism: false,
    pool: 'forks',
    testTimeout: 180_000,
    hookTimeout: 180_000,
  },
});
