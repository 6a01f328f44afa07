// How `npm test` runs the suites: plain Node.js processes, two at a time where CI has two cores.
import { readFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import { defineConfig } from "vitest/config"
import { BaseSequencer } from "vitest/node"
import type { TestSpecification } from "vitest/node"

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

const manifest: { exports: Record<string, unknown> } = JSON.parse(
  readFileSync(new URL("./package.json", import.meta.url), "utf8")
)

/** Modules of `src/layers` that the package exports under their own names. */
const layers = Object.entries(manifest.exports).flatMap(([path, target]) =>
  JSON.stringify(target).includes("/dist/layers/") ? [path.slice(2)] : []
)

const src = fileURLToPath(new URL("./src/", import.meta.url))

/** Begins with the file that waits for other processes most of the time, so that the others do not wait for it at the end. */
class WaitingFirst extends BaseSequencer {
  override async sort(files: Array<TestSpecification>): Promise<Array<TestSpecification>> {
    const sorted = await super.sort(files)
    const waits = ({ moduleId }: TestSpecification) => moduleId.endsWith("test/cluster/process.test.ts")
    return [...sorted.filter(waits), ...sorted.filter((file) => !waits(file))]
  }
}

/** What yielding fibers do not change: pure functions and models, other processes and threads, and what is built from the rest. */
const unyielding = [
  "test/checked/*roperty.test.ts",
  "test/{cli,cluster,demo,encoder,examples,gpu}/**",
  "test/{*.property,blasNumbers,CudaError,images,schema,types}.test.ts",
  "test/native/{compiler*,diagnostics,find,loading,messages,profiler,programCache,selfContained,statuses,threads,workers}.test.ts"
]

export default defineConfig(({ mode }) => ({
  resolve: {
    alias: [
      { find: /^effect-cuda$/, replacement: `${src}index.ts` },
      { find: new RegExp(`^effect-cuda/(${layers.join("|")})$`), replacement: `${src}layers/$1.ts` },
      { find: /^effect-cuda\/([^/]+)$/, replacement: `${src}$1.ts` }
    ]
  },
  test: {
    include: ["test/**/*.test.ts"],
    exclude: ["node_modules/**", ...(mode === "yielding" ? unyielding : [])],
    pool: "forks",
    // Tests in real time share the processor with each other. What fails twice is a failure. Fibers that yield often share the event loop
    // with real timers and threads, too.
    retry: mode === "yielding" ? 2 : 1,
    sequence: { sequencer: WaitingFirst },
    setupFiles: mode === "yielding" ? ["test/support/yielding.ts"] : [],
    ...(process.env["CI"] ? { maxWorkers: 2 } : {}),
    testTimeout: 20_000,
    hookTimeout: 20_000,
    teardownTimeout: 10_000
  }
}))
