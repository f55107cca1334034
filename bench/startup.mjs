/** Medians of what a user waits for: importing the package (and the memory it takes), a loaded engine, an empty native call. */
import { execFileSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';

const entry = fileURLToPath(new URL('../dist/index.js', import.meta.url));
const median = (list) => [...list].sort((a, b) => a - b)[list.length >> 1];
const inChild = (script) =>
  Number(execFileSync(process.execPath, ['--input-type=module', '-e', script], { encoding: 'utf8' }));

const imports = Array.from({ length: 9 }, () =>
  inChild(`const t = performance.now(); await import(${JSON.stringify(entry)}); console.log(performance.now() - t);`),
);
const resident = Array.from({ length: 9 }, () =>
  inChild(
    `const before = process.memoryUsage().rss; await import(${JSON.stringify(entry)}); console.log((process.memoryUsage().rss - before) / 1e6);`,
  ),
);
const ready = Array.from({ length: 9 }, () =>
  inChild(
    `const t = performance.now(); const w = await import(${JSON.stringify(entry)}); w.info(); console.log(performance.now() - t);`,
  ),
);
const { info, Tensor } = await import(entry);
info();
const calls = [];
for (let i = 0; i < 20000; i++) {
  const t = performance.now();
  info();
  calls.push((performance.now() - t) * 1000);
}
const tensor = Tensor.empty([1]);
const shapes = [];
for (let i = 0; i < 20000; i++) {
  const t = performance.now();
  tensor.device;
  shapes.push((performance.now() - t) * 1000);
}
const figures = {
  import_ms: median(imports),
  import_mb: median(resident),
  ready_ms: median(ready),
  info_call_us: median(calls),
  empty_call_us: median(shapes),
};
console.log(JSON.stringify(Object.fromEntries(Object.entries(figures).map(([k, v]) => [k, Number(v.toFixed(2))]))));
