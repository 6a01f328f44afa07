// Serves the built site on this machine: `node scripts/docs/serve.mjs [PORT]`.
import { createReadStream, existsSync, statSync } from "node:fs"
import { createServer } from "node:http"
import { extname, join, normalize } from "node:path"
import { fileURLToPath } from "node:url"

const site = join(fileURLToPath(new URL("../..", import.meta.url)), "site")
const types = {
  ".html": "text/html",
  ".css": "text/css",
  ".js": "text/javascript",
  ".svg": "image/svg+xml",
  ".png": "image/png"
}

/** Starts a server on the loopback address, and returns it with its address. */
export const serve = (port = 0) =>
  new Promise((resolve) => {
    const server = createServer((request, response) => {
      const { pathname } = new URL(request.url, "http://localhost")
      let file = join(site, normalize(decodeURIComponent(pathname)))
      if (existsSync(file) && statSync(file).isDirectory()) file = join(file, "index.html")
      if (!file.startsWith(site) || !existsSync(file)) return response.writeHead(404).end("Not found")
      response.writeHead(200, {
        "content-type": `${types[extname(file)] ?? "application/octet-stream"}; charset=utf-8`
      })
      createReadStream(file).pipe(response)
    })
    server.listen(port, "127.0.0.1", () => resolve({ server, url: `http://127.0.0.1:${server.address().port}/` }))
  })

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { url } = await serve(Number(process.argv[2] ?? 8080))
  console.log(url)
}
