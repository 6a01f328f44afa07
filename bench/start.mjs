// `npm run bench`: says what it needs where Node.js is too old to read the TypeScript of the benchmarks, and else runs them.
const [major, minor] = process.versions.node.split(".").map(Number)

if (major > 22 || (major === 22 && minor >= 18)) {
  await import("./all.ts")
} else {
  console.error(
    `The benchmarks need Node.js 22.18 or later, which runs TypeScript as it is; this is ${process.version}`
  )
  process.exitCode = 1
}
