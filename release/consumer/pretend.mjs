// `node --import ./pretend.mjs`: another operating system, as far as JavaScript sees it.
const [platform, arch] = process.env.PRETEND.split('-');
Object.defineProperty(process, 'platform', { value: platform });
Object.defineProperty(process, 'arch', { value: arch });
