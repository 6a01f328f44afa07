// How `npm test` runs the suites: plain Node.js processes, two at a time where CI has two cores.
import { fileURLToPath } from "node:url"
import { defineConfig } from "vitest/config"

// vitest 5 reports failures with Map.groupBy, which Node 20 does not have.
const groupBy = <K, V>(items: Iterable<V>, keyOf: (item: V, index: number) => K): Map<K, Array<V>> => {
  const groups = new Map<K, Array<V>>()
  let index = 0
  for (const item of items) {
    const key = keyOf(item, index++)
    const group = groups.get(key)
    if (group === undefined) groups.set(key, [item])
    else group.push(item)
  }
  return groups
}
if (!("groupBy" in Map)) Object.assign(Map, { groupBy })

const src = fileURLToPath(new URL("./src/", import.meta.url))

export default defineConfig({
  resolve: {
    alias: [
      { find: /^effect-cuda$/, replacement: `${src}index.ts` },
      { find: /^effect-cuda\/(.+)$/, replacement: `${src}$1.ts` }
    ]
  },
  test: {
    include: ["test/**/*.test.ts"],
    pool: "forks",
    ...(process.env["CI"] ? { maxWorkers: 2 } : {}),
    testTimeout: 20_000,
    hookTimeout: 20_000,
    teardownTimeout: 10_000
  }
})
