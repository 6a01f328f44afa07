/**
 * An HTTP client in a separate process that posts texts at a rate, whether or not the answers come: the arrivals are random (a Poisson process).
 * Argument: the URL. A line of input is a rate per second, a duration in seconds, and the longest text in bytes. The answer is a line with
 * the number of failures and the latency of each success, in milliseconds.
 */
import { Agent, request } from "node:http"
import { createInterface } from "node:readline"

const url = process.argv[2]!
const agent = new Agent({ keepAlive: true, maxSockets: 2048 })

/** The latency in milliseconds; undefined for a failure. */
const post = (text: string): Promise<number | undefined> =>
  new Promise((resolve) => {
    const start = performance.now()
    const sent = request(url, { agent, method: "POST" }, (response) => {
      response.resume()
      response.on("end", () => resolve(response.statusCode === 200 ? performance.now() - start : undefined))
    })
    sent.on("error", () => resolve(undefined))
    sent.end(JSON.stringify({ text }))
  })

const pause = (millis: number) => new Promise<void>((resolve) => setTimeout(resolve, millis))

/** Posts what is due in each turn of a timer. */
const postAll = async (rate: number, seconds: number, longest: number): Promise<ReadonlyArray<number | undefined>> => {
  const answers: Array<Promise<number | undefined>> = []
  const start = performance.now()
  let due = 0
  while (due < seconds * 1e3) {
    while (due <= performance.now() - start) {
      answers.push(post("x".repeat(1 + Math.floor(Math.random() * longest))))
      due -= Math.log(1 - Math.random()) * 1e3 / rate
    }
    await pause(0)
  }
  return Promise.all(answers)
}

for await (const line of createInterface({ input: process.stdin })) {
  const [rate = 1, seconds = 1, longest = 1] = line.split(" ").map(Number)
  const latencies = await postAll(rate, seconds, longest)
  const found = latencies.filter((latency) => latency !== undefined)
  console.log([latencies.length - found.length, ...found.map((latency) => latency.toFixed(3))].join(" "))
}
agent.destroy()
