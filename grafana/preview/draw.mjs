// Bundles the page, serves it on loopback and takes a picture of each dashboard with Chromium:
//   node draw.mjs CHROMIUM FOLDER PICTURE...
// A picture is JSON: the `name` of its file, the parameters of the page's `address`, and perhaps its `width` in pixels
// and `parts`, pictures of their own: each has a `name` and the titles of the rows `from` which and up `to` which it goes.

import { mkdtemp, rm, cp, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { context } from 'esbuild';
import puppeteer from 'puppeteer-core';
import UPNG from 'upng-js';

const HERE = dirname(fileURLToPath(import.meta.url));
const FLAGS = [
  '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync', '--no-proxy-server',
];

const [executablePath, folder, ...pictures] = process.argv.slice(2);
const site = await mkdtemp(join(tmpdir(), 'preview-'));
const { bundler, origin } = await serve(site);
const browser = await puppeteer.launch({ executablePath, args: FLAGS });
try {
  for (const picture of pictures.map((text) => JSON.parse(text))) {
    for (const [name, png] of Object.entries(await draw(picture))) {
      await writeFile(join(folder, `${name}.png`), png);
    }
  }
} finally {
  await browser.close();
  await bundler.dispose();
  await rm(site, { recursive: true });
}

async function serve(site) {
  await cp(join(HERE, 'page/index.html'), join(site, 'index.html'));
  await cp(join(HERE, '../dashboards'), join(site, 'dashboards'), { recursive: true });
  // Where @grafana/ui looks for its icons and fonts.
  await cp(join(HERE, 'node_modules/@grafana/ui/dist/public'), join(site, 'public/build'), { recursive: true });
  for (const [weight, name] of [[400, 'Regular'], [500, 'Medium']]) {
    const font = join(HERE, `node_modules/@fontsource/inter/files/inter-latin-${weight}-normal.woff2`);
    await cp(font, join(site, `public/fonts/inter/Inter-${name}.woff2`));
  }
  const bundler = await context({
    entryPoints: [join(HERE, 'page/main.jsx')],
    bundle: true,
    define: { 'process.env.NODE_ENV': '"production"' },
    jsx: 'automatic',
    loader: { '.svg': 'file', '.ttf': 'file', '.woff': 'file', '.woff2': 'file' },
    logLevel: 'warning',
    outdir: site,
  });
  await bundler.rebuild();
  const { port } = await bundler.serve({ servedir: site, host: '127.0.0.1' });
  return { bundler, origin: `http://127.0.0.1:${port}` };
}

async function draw({ name, address, width = 1440, height: least = 900, parts = [] }) {
  const page = await browser.newPage();
  try {
    page.on('pageerror', (error) => console.error(`${name}: ${error.stack}`));
    page.on('console', (message) => {
      if (['error', 'warn'].includes(message.type())) {
        console.error(`${name}: ${message.text()} ${message.location().url ?? ''}`);
      }
    });
    await page.setViewport({ width, height: least });
    await page.evaluateOnNewDocument(`{
      const now = ${address.now} * 1000;
      Date = class extends Date {
        constructor(...parts) { super(...(parts.length ? parts : [now])); }
        static now() { return now; }
      };
    }`);
    await page.goto(`${origin}/?${new URLSearchParams(address)}`);
    await page.waitForSelector('.grid, [data-failure]', { timeout: 120_000 });
    const failure = await page.$eval('main', (main) => main.dataset.failure);
    if (failure) {
      throw new Error(`${name}: ${failure}`);
    }
    const height = await page.$eval('main', (main) => Math.ceil(main.getBoundingClientRect().height));
    await page.setViewport({ width, height });
    await page.waitForNetworkIdle();
    const tops = await page.$$eval('h2', (rows) =>
      rows.map((row) => ({ title: row.textContent, top: row.getBoundingClientRect().top }))
    );
    const topOf = (title, otherwise) => tops.find((row) => row.title.startsWith(title))?.top ?? otherwise;
    const drawn = { [name]: smaller(await page.screenshot()) };
    for (const part of parts) {
      const [y, end] = [topOf(part.from, 0), topOf(part.to, height)];
      drawn[part.name] = smaller(await page.screenshot({ clip: { x: 0, y, width, height: end - y } }));
    }
    return drawn;
  } finally {
    await page.close();
  }
}

// A picture in 256 colours takes a third of the bytes.
function smaller(png) {
  const { width, height, ...image } = UPNG.decode(png.buffer.slice(png.byteOffset, png.byteOffset + png.byteLength));
  return new Uint8Array(UPNG.encode(UPNG.toRGBA8({ width, height, ...image }), width, height, 256));
}
